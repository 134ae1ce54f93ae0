-- Handlers that nobody has, with retries that nobody will run: at most `most` are counted of each. From one handler to the
-- next in delivery_due, so that it reads as few rows as there are handlers and partitions.
WITH RECURSIVE found AS (
  SELECT min(handler) AS handler FROM {schema}.delivery WHERE state = 'retrying'
  UNION ALL
  SELECT (SELECT min(d.handler) FROM {schema}.delivery AS d WHERE d.state = 'retrying' AND d.handler > f.handler)
    FROM found AS f WHERE f.handler IS NOT NULL
)
SELECT f.handler,
       (SELECT count(*) FROM (SELECT FROM {schema}.delivery AS d
                               WHERE d.state = 'retrying' AND d.handler = f.handler LIMIT %(most)s) AS part) AS retrying
  FROM found AS f
 WHERE f.handler IS NOT NULL
   AND NOT EXISTS (SELECT FROM {schema}.handler AS h WHERE h.name = f.handler)
 ORDER BY f.handler
