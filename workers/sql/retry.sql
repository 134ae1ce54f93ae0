-- First attempts that failed, were put off, or were left by a dead worker. The server's clock says when they are due.
INSERT INTO {schema}.delivery (event_id, handler, event_created_at, state, attempts, crashes, due_at, error,
                               failures)
SELECT e.id, e.handler, 'epoch'::timestamptz + e.at * interval '1 microsecond', 'retrying', e.attempts,
       e.crashes, clock_timestamp() + e.delay * interval '1 second', e.error,
       {schema}.with_failure(NULL, e.attempts, e.error)
  FROM unnest(%(ids)s::uuid[], %(handlers)s::text[], %(ats)s::bigint[], %(attempts)s::integer[],
              %(crashes)s::integer[], %(delays)s::float8[], %(errors)s::text[])
       AS e (id, handler, at, attempts, crashes, delay, error)
 ORDER BY e.id, e.handler
ON CONFLICT DO NOTHING
