-- Puts off the death of letters whose runs are under way, each only while it is that run's. One that is locked is passed by
-- until the next heartbeat. By primary key.
WITH free AS MATERIALIZED (
  SELECT l.event_id, l.handler
    FROM unnest(%(ids)s::uuid[], %(handlers)s::text[], %(beginnings)s::text[]) AS e (id, handler, beginning)
    JOIN {schema}.dead_letter AS l ON l.event_id = e.id AND l.handler = e.handler
   WHERE starts_with(l.error, e.beginning) AND l.replayed_at IS NULL
     FOR UPDATE OF l SKIP LOCKED
)
UPDATE {schema}.dead_letter AS l
   SET died_at = clock_timestamp() + %(term)s * interval '1 second'
  FROM free AS f
 WHERE l.event_id = f.event_id AND l.handler = f.handler
