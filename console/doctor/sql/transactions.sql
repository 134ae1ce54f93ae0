-- Transactions of other sessions that are open for longer than `long` seconds and hold something: a transaction id, a
-- snapshot, or events of this outbox that nobody sees before they are committed. The oldest first. What other roles'
-- sessions do is shown to members of pg_read_all_stats only; `hidden` says that there are such.
WITH ours AS MATERIALIZED (
  SELECT l.pid FROM pg_locks AS l
   WHERE l.locktype = 'relation' AND l.relation = to_regclass('{schema}.event') AND l.mode = 'RowExclusiveLock'
     AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
)
SELECT a.pid, coalesce(a.datname::text, '') AS database, coalesce(a.usename::text, '') AS role, a.application_name AS program,
       a.query = '<insufficient privilege>' AS hidden, a.datname IS NOT DISTINCT FROM current_database() AS here,
       extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS age,
       a.pid IN (SELECT pid FROM ours) AS holds
  FROM pg_stat_activity AS a
 WHERE a.backend_type = 'client backend' AND a.pid <> pg_backend_pid()
   AND (a.query = '<insufficient privilege>'
        OR (a.xact_start < clock_timestamp() - %(long)s * interval '1 second'
            AND (a.backend_xid IS NOT NULL OR a.backend_xmin IS NOT NULL)))
 ORDER BY a.xact_start
