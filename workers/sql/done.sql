-- First attempts that worked, also those that were cancelled while they ran. In the order of the primary key, so that two
-- workers with the same events cannot deadlock.
INSERT INTO {schema}.delivery AS d (event_id, handler, event_created_at, state, attempts)
SELECT e.id, e.handler, 'epoch'::timestamptz + e.at * interval '1 microsecond', 'done', 1
  FROM unnest(%(ids)s::uuid[], %(handlers)s::text[], %(ats)s::bigint[]) AS e (id, handler, at)
 ORDER BY e.id, e.handler
ON CONFLICT (event_id, handler, event_created_at) DO UPDATE
   SET state = 'done', attempts = 1, error = NULL, updated_at = clock_timestamp()
 WHERE d.state = 'cancelled'
