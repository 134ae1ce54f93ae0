-- As commit_done.sql and commit_batch.sql, for handlers that returned something: the driver quotes the results.
INSERT INTO {schema}.delivery (event_id, handler, event_created_at, state, attempts, result)
SELECT e.id, e.handler, 'epoch'::timestamptz + e.at * interval '1 microsecond', 'done', 1, e.result::json
  FROM unnest(%(ids)s::uuid[], %(handlers)s::text[], %(ats)s::bigint[], %(results)s::text[]) AS e (id, handler, at, result)
 ORDER BY e.id
