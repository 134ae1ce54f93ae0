-- As finish_done.sql, for handlers that returned something.
WITH finished AS (
  UPDATE {schema}.delivery AS d
     SET state = 'done', attempts = d.attempts + 1, due_at = NULL, lease = NULL, error = NULL, result = e.result::json,
         updated_at = clock_timestamp()
    FROM unnest(%(ids)s::uuid[], %(handlers)s::text[], %(ats)s::bigint[], %(leases)s::uuid[], %(results)s::text[])
         AS e (id, handler, at, lease, result)
   WHERE d.event_id = e.id AND d.handler = e.handler AND d.lease = e.lease
     AND d.event_created_at = 'epoch'::timestamptz + e.at * interval '1 microsecond'
  RETURNING d.event_id, d.handler
), settled AS (
  DELETE FROM {schema}.dead_letter AS l USING finished AS f WHERE l.event_id = f.event_id AND l.handler = f.handler
)
SELECT f.event_id::text, f.handler FROM finished AS f
