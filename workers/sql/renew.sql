-- Renews leases of retries that still run, and returns those that stand. By primary key.
UPDATE {schema}.delivery AS d
   SET due_at = clock_timestamp() + %(lease)s * interval '1 second'
  FROM unnest(%(ids)s::uuid[], %(handlers)s::text[], %(ats)s::bigint[], %(leases)s::uuid[]) AS e (id, handler, at, lease)
 WHERE d.event_id = e.id AND d.handler = e.handler AND d.lease = e.lease
   AND d.event_created_at = 'epoch'::timestamptz + e.at * interval '1 microsecond'
RETURNING d.lease::text
