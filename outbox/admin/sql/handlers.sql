-- Each handler's side. `lag`: events of its name above `done_to` that have no outcome here, in any state; it looks at no
-- more than `most` events per handler, and `looked` says at how many. `behind` is the snapshot below which all is done.
-- Index: event_xid from there on, tick's and delivery's primary keys, delivery_due for what is retrying. The counts by
-- state stop at `most` rows over all handlers. ORDER BY xid keeps the planner from scanning
-- all events for that, OFFSET 0 from hashing all deliveries.
WITH finished AS MATERIALIZED (
  SELECT handler, count(*) AS count, sum(count(*)) OVER () AS looked
    FROM (SELECT handler FROM {schema}.delivery WHERE state = 'done' LIMIT %(most)s) AS part GROUP BY handler
), retrying AS MATERIALIZED (
  SELECT handler, count(*) AS count, sum(count(*)) OVER () AS looked
    FROM (SELECT handler FROM {schema}.delivery WHERE state = 'retrying' LIMIT %(most)s) AS part GROUP BY handler
), dead AS MATERIALIZED (
  SELECT handler, count(*) AS count, sum(count(*)) OVER () AS looked
    FROM (SELECT handler FROM {schema}.dead_letter WHERE replayed_at IS NULL LIMIT %(most)s) AS part GROUP BY handler
)
SELECT h.name, h.event_name, h.attached,
       EXISTS (SELECT FROM {schema}.hold AS o WHERE (o.what, o.name) IN (('handler', h.name), ('event', h.event_name))) AS paused,
       h.done_tick, h.done_seq, h.fed_tick, h.fed_seq, h.last_seen,
       lag.waiting, lag.looked AS lag_looked, lag.oldest,
       coalesce(f.count, 0) AS done, coalesce((SELECT max(looked) FROM finished), 0) AS done_looked,
       coalesce(r.count, 0) AS retrying, coalesce((SELECT max(looked) FROM retrying), 0) AS retrying_looked,
       coalesce(d.count, 0) AS dead, coalesce((SELECT max(looked) FROM dead), 0) AS dead_looked
  FROM {schema}.handler AS h
  LEFT JOIN finished AS f ON f.handler = h.name
  LEFT JOIN retrying AS r ON r.handler = h.name
  LEFT JOIN dead AS d ON d.handler = h.name
  LEFT JOIN LATERAL (SELECT snapshot FROM {schema}.tick WHERE id <= h.done_tick ORDER BY id DESC LIMIT 1) AS at ON true
  LEFT JOIN LATERAL (SELECT snapshot FROM {schema}.tick WHERE id < h.done_tick ORDER BY id DESC LIMIT 1) AS behind ON true
 CROSS JOIN LATERAL (
       SELECT count(*) AS looked, count(*) FILTER (WHERE mine) AS waiting, min(created_at) FILTER (WHERE mine) AS oldest
         FROM (SELECT e.created_at,
                      e.name = h.event_name
                      AND NOT coalesce(pg_visible_in_snapshot(e.xid, at.snapshot) AND e.seq <= h.done_seq, false)
                      AND NOT EXISTS (SELECT FROM {schema}.delivery AS o WHERE o.event_id = e.id AND o.handler = h.name
                                         AND o.event_created_at = e.created_at OFFSET 0) AS mine
                 FROM ((SELECT * FROM {schema}.event
                         WHERE xid >= coalesce(pg_snapshot_xmax(behind.snapshot), '0') ORDER BY xid LIMIT %(most)s)
                        UNION ALL
                       SELECT * FROM {schema}.event
                        WHERE xid = ANY(ARRAY(SELECT pg_snapshot_xip(behind.snapshot)))) AS e
                LIMIT %(most)s) AS part) AS lag
 ORDER BY h.event_name, h.name
