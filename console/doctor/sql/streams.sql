-- Every event name that has or had a stream, with its handlers.
SELECT n.name, coalesce(array_agg(h.name ORDER BY h.name) FILTER (WHERE h.name IS NOT NULL), '{}') AS handlers
  FROM (SELECT name FROM {schema}.stream UNION SELECT event_name FROM {schema}.handler) AS n
  LEFT JOIN {schema}.handler AS h ON h.event_name = n.name
 GROUP BY n.name
 ORDER BY n.name
