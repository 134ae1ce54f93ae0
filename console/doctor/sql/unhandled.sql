-- Names without a handler among the last `most` events that were written. Index: event_xid, backwards.
SELECT e.name, count(*) AS events
  FROM (SELECT name FROM {schema}.event ORDER BY xid DESC LIMIT %(most)s) AS e
 WHERE e.name NOT IN ('(purged)', '(copy)')
   AND NOT EXISTS (SELECT FROM {schema}.handler AS h WHERE h.event_name = e.name)
 GROUP BY e.name
 ORDER BY events DESC, e.name
