-- How much of each sequence of the schema is used up, and how old the oldest transaction id of the whole server is that
-- is not frozen yet. Catalog only; last_value is null to whoever may not read the sequence.
SELECT s.sequencename::text AS name, coalesce(s.last_value, 0)::float8 / s.max_value AS used,
       (SELECT max(age(datfrozenxid)) FROM pg_database)::bigint AS age
  FROM pg_sequences AS s
 WHERE s.schemaname = '{schema}'
 ORDER BY s.sequencename
