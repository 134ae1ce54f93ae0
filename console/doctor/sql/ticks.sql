-- How many ticks are kept, counted up to `most` along the primary key, and since when.
SELECT (SELECT count(*) FROM (SELECT FROM {schema}.tick ORDER BY id LIMIT %(most)s) AS part) AS ticks,
       (SELECT created_at FROM {schema}.tick ORDER BY id LIMIT 1) AS since
