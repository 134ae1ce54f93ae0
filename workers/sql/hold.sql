-- Deliveries that a worker holds and whose entries are no longer in their stream: leased to it, as retries that were claimed
-- are. What has a row already is left as it is. In the order of the primary key, as in done.sql.
INSERT INTO {schema}.delivery (event_id, handler, event_created_at, state, attempts, due_at, lease)
SELECT e.id, e.handler, 'epoch'::timestamptz + e.at * interval '1 microsecond', 'retrying', 0,
       clock_timestamp() + %(lease)s * interval '1 second', gen_random_uuid()
  FROM unnest(%(ids)s::uuid[], %(handlers)s::text[], %(ats)s::bigint[]) AS e (id, handler, at)
 ORDER BY e.id, e.handler
ON CONFLICT DO NOTHING
RETURNING event_id::text, lease::text
