-- Takes the next dead letters away for good; their deliveries stay dead. Letters that a replay holds are left to it, and
-- what dies meanwhile is not touched. Index: dead_letter_died_at, or by id the primary key.
WITH chosen AS MATERIALIZED (
  SELECT l.event_id, l.handler
    FROM {schema}.dead_letter AS l
   WHERE l.replayed_at IS NULL AND l.died_at <= %(began)s
     AND {selection}
   ORDER BY l.died_at, l.event_id, l.handler
   LIMIT %(batch)s
     FOR UPDATE SKIP LOCKED
)
DELETE FROM {schema}.dead_letter AS l USING chosen AS c WHERE l.event_id = c.event_id AND l.handler = c.handler
