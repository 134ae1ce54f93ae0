-- How many rows the default partitions hold, counted up to `most`.
SELECT (SELECT count(*) FROM (SELECT FROM {schema}.event_default LIMIT %(most)s) AS part) AS event,
       (SELECT count(*) FROM (SELECT FROM {schema}.delivery_default LIMIT %(most)s) AS part) AS delivery
