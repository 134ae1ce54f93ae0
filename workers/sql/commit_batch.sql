-- First attempts that worked: with COMMIT the end of their batch's transaction. One that has a row already violates the
-- primary key, and COMMIT is not reached. In the order of the primary key, as in done.sql.
INSERT INTO {schema}.delivery (event_id, handler, event_created_at, state, attempts)
SELECT e.id, '{handler}', 'epoch'::timestamptz + e.at * interval '1 microsecond', 'done', 1
  FROM unnest('{ids}'::uuid[], '{ats}'::bigint[]) AS e (id, at)
 ORDER BY e.id
