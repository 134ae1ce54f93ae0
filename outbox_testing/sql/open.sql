-- What these handlers have not brought to an end: events of their names that have no outcome and are not before the
-- handler's beginning (as `done_to` and the ticks' snapshots say), retries, and runs of this process that must not be
-- repeated, which are dead while they run. For the small databases of tests: it reads all events.
WITH mark AS MATERIALIZED (
  SELECT h.name, h.event_name, h.done_seq,
         EXISTS (SELECT FROM {schema}.hold AS o WHERE (o.what, o.name) IN (('handler', h.name), ('event', h.event_name))) AS paused,
         coalesce((SELECT snapshot FROM {schema}.tick WHERE id < h.done_tick ORDER BY id DESC LIMIT 1),
                  '1:1:'::pg_snapshot) AS before,
         coalesce((SELECT snapshot FROM {schema}.tick WHERE id <= h.done_tick ORDER BY id DESC LIMIT 1),
                  '1:1:'::pg_snapshot) AS own
    FROM {schema}.handler AS h
   WHERE h.name = ANY(%(handlers)s::text[])
)
SELECT handler, event_name, event_id, paused, attempts, running, due, error
  FROM (
SELECT m.name AS handler, e.name AS event_name, e.id::text AS event_id, m.paused, NULL AS attempts, false AS running,
       NULL AS due, NULL AS error, e.created_at AS at
  FROM {schema}.event AS e
  JOIN mark AS m ON m.event_name = e.name
 WHERE NOT pg_visible_in_snapshot(e.xid, m.before)
   AND NOT (pg_visible_in_snapshot(e.xid, m.own) AND e.seq <= m.done_seq)
   AND NOT EXISTS (SELECT FROM {schema}.delivery AS d
                    WHERE d.event_id = e.id AND d.handler = m.name AND d.event_created_at = e.created_at)
UNION ALL
SELECT m.name, m.event_name, d.event_id::text, m.paused, d.attempts, d.lease IS NOT NULL,
       extract(epoch FROM d.due_at - clock_timestamp())::float8, d.error, d.event_created_at
  FROM {schema}.delivery AS d
  JOIN mark AS m ON m.name = d.handler
 WHERE d.state = 'retrying'
UNION ALL
SELECT m.name, m.event_name, d.event_id::text, m.paused, NULL, true, NULL, NULL, d.event_created_at
  FROM {schema}.delivery AS d
  JOIN mark AS m ON m.name = d.handler
 WHERE d.state = 'dead' AND d.error LIKE %(begun)s AND d.updated_at >= %(since)s
) AS unfinished
 ORDER BY at, event_id, handler
 LIMIT %(most)s
