-- The relay's side in one row: where the main feed is, who leads, how many events are committed and how many of them no
-- published tick has seen. Every count stops at `most`. Index: tick's primary key backwards, event_xid for what is new
-- (ORDER BY xid, or a LIMIT would tempt the planner into a full scan).
WITH published AS MATERIALIZED (
  SELECT snapshot, created_at FROM {schema}.tick WHERE count IS NOT NULL ORDER BY id DESC LIMIT 1
), fresh AS (
  (SELECT created_at FROM {schema}.event WHERE xid >= (SELECT pg_snapshot_xmax(snapshot) FROM published)
    ORDER BY xid LIMIT %(most)s)
  UNION ALL
  SELECT created_at FROM {schema}.event WHERE xid = ANY(ARRAY(SELECT pg_snapshot_xip(snapshot) FROM published))
), unpublished AS MATERIALIZED (
  SELECT count(*) AS count, min(created_at) AS oldest FROM (SELECT created_at FROM fresh LIMIT %(most)s) AS part
)
SELECT clock_timestamp() AS at, r.tick, r.seq, r.leader, r.heartbeat,
       (SELECT created_at FROM {schema}.tick ORDER BY id DESC LIMIT 1) AS last_tick_at,
       (SELECT count(*) FROM (SELECT FROM {schema}.event LIMIT %(most)s) AS part) AS events,
       u.count AS unpublished, u.oldest AS oldest_unpublished_at,
       l.pid, a.application_name, host(a.client_addr) AS client_address, a.backend_start
  FROM unpublished AS u
  LEFT JOIN {schema}.relay AS r ON true
  LEFT JOIN pg_locks AS l ON l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND (l.classid::bigint << 32 | l.objid::bigint) = %(lock)s
  LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
