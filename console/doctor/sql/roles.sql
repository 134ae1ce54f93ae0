-- Which role does what at the moment: the sessions of relays and workers in this database whose role may enter the schema
-- (another installation's workers look just like ours), and this session, which reads. pg_stat_activity shows names of
-- programs and roles to everybody.
SELECT DISTINCT usename::text AS role, CASE application_name WHEN 'outbox worker' THEN 'worker' ELSE 'relay' END AS part
  FROM pg_stat_activity
 WHERE datname = current_database() AND application_name IN ('outbox worker', 'outbox relay {schema}')
   AND has_schema_privilege(usename, '{schema}', 'USAGE')
UNION
SELECT current_user::text, 'reader'
