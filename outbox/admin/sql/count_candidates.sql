-- How many dead letters nobody has put back yet, by handler, and whether a worker has announced that. Index:
-- dead_letter_died_at, or the primary key; `handler` is small.
SELECT l.handler, h.name IS NOT NULL AS known, count(*) AS count
  FROM {schema}.dead_letter AS l
  LEFT JOIN {schema}.handler AS h ON h.name = l.handler
 WHERE l.replayed_at IS NULL AND l.died_at <= %(began)s
   AND {selection}
 GROUP BY l.handler, h.name
