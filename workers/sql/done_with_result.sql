-- As done.sql, for handlers that returned something. What was cancelled while it ran keeps none: it may have been purged.
INSERT INTO {schema}.delivery AS d (event_id, handler, event_created_at, state, attempts, result)
SELECT e.id, e.handler, 'epoch'::timestamptz + e.at * interval '1 microsecond', 'done', 1, e.result::json
  FROM unnest(%(ids)s::uuid[], %(handlers)s::text[], %(ats)s::bigint[], %(results)s::text[]) AS e (id, handler, at, result)
 ORDER BY e.id, e.handler
ON CONFLICT (event_id, handler, event_created_at) DO UPDATE
   SET state = 'done', attempts = 1, error = NULL, updated_at = clock_timestamp()
 WHERE d.state = 'cancelled'
