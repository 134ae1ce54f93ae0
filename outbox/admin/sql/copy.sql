-- Edited copies of events, each for one handler only: under a name that no handler has, so that the relay publishes them to
-- nobody, with a delivery that is due. The dead letter that a copy stands for counts as replayed and stays; `failures` of the
-- original's delivery, where there is one, names the copy as attempt 0. By primary keys.
WITH chosen AS (
  SELECT * FROM unnest(%(ids)s::uuid[], %(copies)s::uuid[], %(handlers)s::text[], %(keys)s::text[], %(payloads)s::text[],
                       %(headers)s::text[], %(ats)s::timestamptz[])
    AS c (event_id, copy_id, handler, key, payload, headers, event_created_at)
), marked AS (
  UPDATE {schema}.dead_letter AS l SET replayed_at = clock_timestamp()
    FROM chosen AS c WHERE l.event_id = c.event_id AND l.handler = c.handler AND l.replayed_at IS NULL
), named AS (
  UPDATE {schema}.delivery AS d
     SET failures = {schema}.with_failure(d.failures, 0, format('as the edited copy %%s, %%s', c.copy_id, %(by)s::text))
    FROM chosen AS c
   WHERE d.event_id = c.event_id AND d.handler = c.handler AND d.event_created_at = c.event_created_at
), copied AS (
  INSERT INTO {schema}.event (id, name, key, payload, headers)
  SELECT copy_id, '(copy)', key, payload::json, headers::json FROM chosen
  RETURNING id, created_at
)
INSERT INTO {schema}.delivery (event_id, handler, event_created_at, state, attempts, replays, due_at, failures)
SELECT p.id, c.handler, p.created_at, 'retrying', 0, 1, clock_timestamp(), {schema}.with_failure(NULL, 0, %(by)s)
  FROM copied AS p JOIN chosen AS c ON c.copy_id = p.id ORDER BY p.id
