-- Retries that failed once more (cost 1), were put off or handed back (cost 0), each only while its lease stands.
-- `crashes` is 1 for those that killed their child process.
UPDATE {schema}.delivery AS d
   SET attempts = d.attempts + e.cost, crashes = d.crashes + e.crashes, due_at = clock_timestamp() + e.delay * interval '1 second', lease = NULL,
       error = coalesce(e.error, d.error),
       failures = {schema}.with_failure(d.failures, d.attempts + e.cost, e.error), updated_at = clock_timestamp()
  FROM unnest(%(ids)s::uuid[], %(handlers)s::text[], %(ats)s::bigint[], %(leases)s::uuid[], %(costs)s::integer[],
              %(crashes)s::integer[], %(delays)s::float8[], %(errors)s::text[]) AS e (id, handler, at, lease, cost, crashes, delay, error)
 WHERE d.event_id = e.id AND d.handler = e.handler AND d.lease = e.lease
   AND d.event_created_at = 'epoch'::timestamptz + e.at * interval '1 microsecond'
RETURNING d.event_id::text, d.handler
