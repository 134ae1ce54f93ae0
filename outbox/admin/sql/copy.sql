-- Edited copies of events, each for one handler only: under a name that no handler has, so that the relay publishes them to
-- nobody, with a delivery that is due. The dead letter that a copy stands for counts as replayed and stays.
WITH chosen AS (
  SELECT * FROM unnest(%(ids)s::uuid[], %(copies)s::uuid[], %(handlers)s::text[], %(keys)s::text[], %(payloads)s::text[],
                       %(headers)s::text[]) AS c (event_id, copy_id, handler, key, payload, headers)
), marked AS (
  UPDATE {schema}.dead_letter AS l SET replayed_at = clock_timestamp()
    FROM chosen AS c WHERE l.event_id = c.event_id AND l.handler = c.handler AND l.replayed_at IS NULL
), copied AS (
  INSERT INTO {schema}.event (id, name, key, payload, headers)
  SELECT copy_id, '(copy)', key, payload::json, headers::json FROM chosen
  RETURNING id, created_at
)
INSERT INTO {schema}.delivery (event_id, handler, event_created_at, state, attempts, replays, due_at)
SELECT p.id, c.handler, p.created_at, 'retrying', 0, 1, clock_timestamp()
  FROM copied AS p JOIN chosen AS c ON c.copy_id = p.id ORDER BY p.id
