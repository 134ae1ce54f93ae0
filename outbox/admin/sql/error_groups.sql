-- Dead letters that nobody has put back, counted by handler, event name and group of their error, the most first; of each
-- the latest is shown. Looks at the latest `most` in the span of ids and time. Index: dead_letter_died_at backwards; the primary key for the
-- latest of each group.
WITH part AS MATERIALIZED (
  SELECT l.event_id, l.handler, l.name, l.died_at, {group} AS "group"
    FROM (SELECT * FROM {schema}.dead_letter AS l
           WHERE l.replayed_at IS NULL AND l.died_at <= clock_timestamp() AND {span} ORDER BY l.died_at DESC
           LIMIT %(most)s) AS l
   WHERE {selection}
), grouped AS (
  SELECT "group", handler, name, count(*) AS count, min(died_at) AS first_at, max(died_at) AS latest_at,
         (array_agg(event_id ORDER BY died_at DESC))[1] AS latest_id
    FROM part GROUP BY "group", handler, name
   ORDER BY count(*) DESC, max(died_at) DESC
   LIMIT %(limit)s
)
SELECT g."group", g.handler, g.name AS event_name, g.count, g.first_at, g.latest_at, g.latest_id, l.error
  FROM grouped AS g JOIN {schema}.dead_letter AS l ON l.event_id = g.latest_id AND l.handler = g.handler
 ORDER BY g.count DESC, g.latest_at DESC
