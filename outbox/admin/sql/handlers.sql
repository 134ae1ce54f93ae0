-- Each handler's side. `waiting`: events of its name above `done_to` that have no outcome here, in any state. It looks at
-- no more events than its share of `most`; if there are more, `spread` looks at some at twenty places between those and
-- the newest, and the rest is thought to be like them. `behind` is the snapshot below which all is done, `at` that of the
-- tick of `done_to`, of which some five times the share are looked through for what is above it. All counts of a handler stop
-- at its share. Index: event_xid, tick's and delivery's primary keys, delivery_due for what is retrying,
-- dead_letter_handler. ORDER BY xid keeps the planner from scanning all events for that, OFFSET 0 from hashing all
-- deliveries.
WITH head AS MATERIALIZED (
  SELECT xid::text::bigint AS xid, seq FROM {schema}.event ORDER BY event.xid DESC LIMIT 1
), share AS MATERIALIZED (
  SELECT greatest(least(200, %(most)s), %(most)s / greatest(1, count(*))) AS each FROM {schema}.handler
)
SELECT h.name, h.event_name, h.attached,
       EXISTS (SELECT FROM {schema}.hold AS o WHERE (o.what, o.name) IN (('handler', h.name), ('event', h.event_name))) AS paused,
       h.done_tick, h.done_seq, h.fed_tick, h.fed_seq, h.last_seen,
       (SELECT each FROM share) AS most, near.waiting, near.looked, near.oldest,
       near.waiting + coalesce(round((SELECT seq - near.last_seq FROM head) * spread.waiting::numeric / nullif(spread.looked, 0)), 0)::bigint
         AS waiting_estimate,
       retried.retrying, retried.running, retried.overdue_since, dead.count AS dead,
       (SELECT count(*) FROM {schema}.worker AS w
         WHERE h.name = ANY(w.handlers) AND w.seen_at > clock_timestamp() - %(alive)s * interval '1 second') AS workers
  FROM {schema}.handler AS h
  LEFT JOIN LATERAL (SELECT snapshot FROM {schema}.tick WHERE id <= h.done_tick ORDER BY id DESC LIMIT 1) AS at ON true
  LEFT JOIN LATERAL (SELECT snapshot FROM {schema}.tick WHERE id < h.done_tick ORDER BY id DESC LIMIT 1) AS behind ON true
 CROSS JOIN LATERAL (
       SELECT count(*) AS looked, count(*) FILTER (WHERE mine) AS waiting, min(created_at) FILTER (WHERE mine) AS oldest,
              max(seq) AS last_seq, max(xid::text::bigint) AS last_xid
         FROM (SELECT e.created_at, e.seq, e.xid,
                      e.name = h.event_name
                      AND NOT EXISTS (SELECT FROM {schema}.delivery AS o WHERE o.event_id = e.id AND o.handler = h.name
                                         AND o.event_created_at = e.created_at OFFSET 0) AS mine
                 FROM (SELECT * FROM (SELECT * FROM {schema}.event
                                       WHERE xid >= coalesce(pg_snapshot_xmax(behind.snapshot), '0')
                                         AND xid < pg_snapshot_xmax(at.snapshot)
                                       ORDER BY xid LIMIT (SELECT 5 * each FROM share)) AS own
                        WHERE seq > h.done_seq OR NOT pg_visible_in_snapshot(xid, at.snapshot)
                        UNION ALL
                       SELECT * FROM {schema}.event
                        WHERE xid = ANY(ARRAY(SELECT pg_snapshot_xip(behind.snapshot)))
                          AND (seq > h.done_seq OR NOT pg_visible_in_snapshot(xid, at.snapshot))
                        UNION ALL
                       (SELECT * FROM {schema}.event
                         WHERE xid >= coalesce(pg_snapshot_xmax(at.snapshot), '0')
                         ORDER BY xid LIMIT (SELECT each FROM share))) AS e
                LIMIT (SELECT each FROM share)) AS part) AS near
 CROSS JOIN LATERAL (
       SELECT count(*) AS looked,
              count(*) FILTER (WHERE p.name = h.event_name
                                 AND NOT EXISTS (SELECT FROM {schema}.delivery AS o WHERE o.event_id = p.id
                                                    AND o.handler = h.name AND o.event_created_at = p.created_at OFFSET 0))
                AS waiting
         FROM head
        CROSS JOIN generate_series(0, 19) AS n
        CROSS JOIN LATERAL (SELECT * FROM {schema}.event AS e
                             WHERE e.xid > (near.last_xid + (head.xid - near.last_xid) * n / 20)::text::xid8
                             ORDER BY e.xid LIMIT 10) AS p
        WHERE near.looked >= (SELECT each FROM share)) AS spread
 CROSS JOIN LATERAL (
       SELECT count(*) AS retrying, count(lease) AS running,
              min(due_at) FILTER (WHERE lease IS NULL AND due_at <= clock_timestamp()) AS overdue_since
         FROM (SELECT r.due_at, r.lease FROM {schema}.delivery AS r
                WHERE r.handler = h.name AND r.state = 'retrying'
                ORDER BY r.due_at LIMIT (SELECT each FROM share)) AS part) AS retried
 CROSS JOIN LATERAL (
       SELECT count(*) AS count
         FROM (SELECT FROM {schema}.dead_letter AS l WHERE l.handler = h.name AND l.replayed_at IS NULL
                  AND l.died_at <= clock_timestamp()
                LIMIT (SELECT each FROM share)) AS part) AS dead
 ORDER BY h.event_name, h.name
