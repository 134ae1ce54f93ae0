-- Puts the next dead letters, the oldest first, back among the deliveries that are due. Letters that another replay holds are
-- left to it. What dies again meanwhile stands behind the place (died_at, event_id, handler) already reached or died after
-- `began`, and is not touched twice. A delivery that went with its partition gets a new row; one that is no longer dead
-- stays as it is. Index: dead_letter_died_at, or by id the primary key; delivery's primary key.
WITH chosen AS MATERIALIZED (
  SELECT event_id, handler, event_created_at, died_at
    FROM {schema}.dead_letter AS l
   WHERE replayed_at IS NULL
     AND died_at <= %(began)s
     AND (%(after_died_at)s::timestamptz IS NULL
          OR (died_at, event_id, handler) > (%(after_died_at)s, %(after_event_id)s::uuid, %(after_handler)s::text))
     AND {selection}
   ORDER BY died_at, event_id, handler
   LIMIT %(batch)s
     FOR UPDATE SKIP LOCKED
), marked AS (
  UPDATE {schema}.dead_letter AS l SET replayed_at = clock_timestamp()
    FROM chosen AS c WHERE l.event_id = c.event_id AND l.handler = c.handler
), put_back AS (
  INSERT INTO {schema}.delivery AS d (event_id, handler, event_created_at, state, attempts, replays, due_at)
  SELECT event_id, handler, event_created_at, 'retrying', 0, 1, clock_timestamp() FROM chosen
  ON CONFLICT (event_id, handler, event_created_at) DO UPDATE
     SET state = 'retrying', attempts = 0, crashes = 0, lease = NULL, replays = d.replays + 1, due_at = clock_timestamp(),
         updated_at = clock_timestamp()
   WHERE d.state = 'dead'
)
SELECT event_id, handler, died_at FROM chosen ORDER BY died_at, event_id, handler
