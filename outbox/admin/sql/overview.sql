-- The relay's side in one row: where the main feed is, who leads and who stands by, how many events are committed and how many
-- of them no published tick has seen, what was published of late, which workers live. Every count stops at `most`; beyond
-- that what the statistics and the numbers of the events say. Index: tick's primary key backwards, event_xid for what is
-- new (ORDER BY xid, or a LIMIT would tempt the planner into a full scan). pg_stat_activity shows names of programs to
-- everybody. The flag is not read on a standby server, where an unlogged sequence has no value.
WITH moment AS MATERIALIZED (
  -- Read once: a volatile function is no bound of an index scan.
  SELECT now, now - interval '1 minute' AS minute, now - interval '5 minutes' AS minutes
    FROM clock_timestamp() AS now
), published AS MATERIALIZED (
  SELECT snapshot, created_at FROM {schema}.tick WHERE count IS NOT NULL ORDER BY id DESC LIMIT 1
), fresh AS (
  (SELECT created_at FROM {schema}.event WHERE xid >= (SELECT pg_snapshot_xmax(snapshot) FROM published)
    ORDER BY xid LIMIT %(most)s)
  UNION ALL
  SELECT created_at FROM {schema}.event WHERE xid = ANY(ARRAY(SELECT pg_snapshot_xip(snapshot) FROM published))
), unpublished AS MATERIALIZED (
  SELECT count(*) AS count, min(created_at) AS oldest FROM (SELECT created_at FROM fresh LIMIT %(most)s) AS part
), recent AS MATERIALIZED (
  SELECT sum(count) FILTER (WHERE created_at > (SELECT minute FROM moment)) AS minute, sum(count) AS minutes
    FROM (SELECT created_at, count FROM {schema}.tick
           WHERE id >= (SELECT floor(extract(epoch FROM minutes) * 1000)::bigint FROM moment)
           ORDER BY id DESC LIMIT 50000) AS part
   WHERE created_at > (SELECT minutes FROM moment)
), lead AS MATERIALIZED (
  SELECT pid FROM pg_locks
   WHERE locktype = 'advisory' AND granted AND objsubid = 1
     AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
     AND (classid::bigint << 32 | objid::bigint) = %(lock)s
)
SELECT (SELECT now FROM moment) AS at, r.tick, r.seq, r.leader, r.heartbeat, r.backend_pid,
       (SELECT created_at FROM {schema}.tick ORDER BY id DESC LIMIT 1) AS last_tick_at,
       (SELECT count(*) FROM (SELECT FROM {schema}.event LIMIT %(most)s) AS part) AS events,
       (SELECT sum(c.reltuples)::bigint FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
         WHERE i.inhparent = '{schema}.event'::regclass AND c.reltuples > 0) AS events_estimate,
       u.count AS unpublished, u.oldest AS oldest_unpublished_at,
       (SELECT seq FROM {schema}.event ORDER BY xid DESC LIMIT 1) - r.seq AS unpublished_estimate,
       (SELECT count(*)
          FROM (SELECT FROM {schema}.dead_letter
                 WHERE replayed_at IS NULL AND died_at <= clock_timestamp() LIMIT %(most)s) AS part) AS dead,
       coalesce(p.minute, 0)::bigint AS published_minute, coalesce(p.minutes, 0)::bigint AS published_minutes,
       l.pid, a.application_name, host(a.client_addr) AS client_address, a.backend_start,
       CASE WHEN pg_is_in_recovery() OR NOT has_sequence_privilege('{schema}.asleep', 'SELECT') THEN NULL
            ELSE coalesce(pg_sequence_last_value('{schema}.asleep'::regclass), 0) > extract(epoch FROM clock_timestamp())
        END AS asleep,
       (SELECT coalesce(json_agg(json_build_object('pid', s.pid, 'address', host(s.client_addr), 'since', s.backend_start)
                                 ORDER BY s.pid), '[]')
          FROM pg_stat_activity AS s
         WHERE s.datname = current_database() AND s.application_name = %(relay)s
           AND s.pid NOT IN (SELECT pid FROM lead)) AS standbys,
       (SELECT coalesce(json_agg(json_build_object('name', w.name, 'handlers', w.handlers, 'started_at', w.started_at,
                                                   'seen_at', w.seen_at) ORDER BY w.name), '[]')
          FROM {schema}.worker AS w WHERE w.seen_at > clock_timestamp() - %(alive)s * interval '1 second') AS workers
  FROM unpublished AS u CROSS JOIN recent AS p
  LEFT JOIN {schema}.relay AS r ON true
  LEFT JOIN lead AS l ON true
  LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
