-- The next deliveries to run again, or for the first time, in the order of the events' ids: what has one of these outcomes
-- since before the replay began, and with `missed` what has none although the handler is past it (it began later). What is
-- dead without a letter was discarded and stays so; with one that dies later only it is a run that must not be repeated.
-- Index: event's primary key from the place on, in the partitions that the selection leaves; delivery's, once for each.
WITH mark AS MATERIALIZED (
  SELECT h.name, h.event_name, h.done_seq,
         coalesce((SELECT snapshot FROM {schema}.tick WHERE id < h.done_tick ORDER BY id DESC LIMIT 1),
                  '1:1:'::pg_snapshot) AS before,
         coalesce((SELECT snapshot FROM {schema}.tick WHERE id <= h.done_tick ORDER BY id DESC LIMIT 1),
                  '1:1:'::pg_snapshot) AS own
    FROM {schema}.handler AS h
   WHERE %(handler)s::text IS NULL OR h.name = %(handler)s
)
SELECT e.id AS event_id, m.name AS handler, e.created_at AS event_created_at, e.created_at AS at, e.name, e.key,
       e.payload::text AS payload_json, e.headers::text AS headers
  FROM {schema}.event AS e
  JOIN mark AS m ON m.event_name = e.name
  LEFT JOIN LATERAL (
         SELECT o.state, o.updated_at, o.error FROM {schema}.delivery AS o
          WHERE o.event_id = e.id AND o.handler = m.name AND o.event_created_at = e.created_at OFFSET 0) AS d ON true
 WHERE (%(place_id)s::uuid IS NULL
        OR ((e.id, e.created_at) >= (%(place_id)s::uuid, %(place_at)s::timestamptz)
            AND (e.id, e.created_at, m.name) > (%(place_id)s::uuid, %(place_at)s::timestamptz, %(place_handler)s::text)))
   AND CASE WHEN d.state IS NULL
            THEN %(missed)s AND (pg_visible_in_snapshot(e.xid, m.before)
                                 OR (pg_visible_in_snapshot(e.xid, m.own) AND e.seq <= m.done_seq))
            ELSE d.state = ANY(%(states)s::text[]) AND d.updated_at <= %(began)s
             AND (d.state <> 'dead' OR EXISTS (SELECT FROM {schema}.dead_letter AS l
                   WHERE l.event_id = e.id AND l.handler = m.name AND l.died_at <= clock_timestamp() OFFSET 0)) END
   AND {selection}
 ORDER BY e.id, e.created_at, m.name
 LIMIT %(batch)s
