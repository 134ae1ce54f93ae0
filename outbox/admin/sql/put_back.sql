-- Puts deliveries back among those that are due, with all their attempts and without a result; a dead letter of one counts as
-- replayed. One that went with its partition, or never was, gets a row; one that is in another state by now stays as it is.
-- `failures` says what it was, and who put it back, as attempt 0. By primary key, in its order.
WITH chosen AS (
  SELECT * FROM unnest(%(ids)s::uuid[], %(handlers)s::text[], %(ats)s::timestamptz[]) AS c (event_id, handler, event_created_at)
), marked AS (
  UPDATE {schema}.dead_letter AS l SET replayed_at = clock_timestamp()
    FROM chosen AS c WHERE l.event_id = c.event_id AND l.handler = c.handler AND l.replayed_at IS NULL
)
INSERT INTO {schema}.delivery AS d (event_id, handler, event_created_at, state, attempts, replays, due_at, failures)
SELECT event_id, handler, event_created_at, 'retrying', 0, 1, clock_timestamp(), {schema}.with_failure(NULL, 0, %(by)s)
  FROM chosen ORDER BY event_id, handler
ON CONFLICT (event_id, handler, event_created_at) DO UPDATE
   SET state = 'retrying', attempts = 0, crashes = 0, lease = NULL, replays = d.replays + 1, due_at = clock_timestamp(),
       failures = {schema}.with_failure(
         d.failures, 0, format('%%s; it was %%s since %%s UTC', %(by)s::text, d.state,
                               to_char(d.updated_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'))),
       result = NULL, updated_at = clock_timestamp()
 WHERE d.state = ANY(%(states)s::text[])
