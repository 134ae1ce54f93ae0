-- The events of one name in a run of ticks that have no outcome yet at one handler, each with its tick: what a catch-up feed
-- publishes. Index: event_xid, once per tick; delivery's primary key, once per event.
-- OFFSET 0 keeps both from being planned as joins: without statistics that was a nested loop over all ticks and all events.
SELECT e.seq, e.id, e.name, coalesce(e.key, ''), e.payload, coalesce(e.headers::text, ''),
       (date_part('epoch', e.created_at) * 1000000)::bigint, t.id
  FROM unnest(%(ticks)s::bigint[], %(from)s::text[], %(to)s::text[]) AS t (id, since, upto)
 CROSS JOIN LATERAL (
       SELECT * FROM {schema}.event AS e
        WHERE ((e.xid >= pg_snapshot_xmax(t.since::pg_snapshot) AND e.xid < pg_snapshot_xmax(t.upto::pg_snapshot))
               OR e.xid = ANY(ARRAY(SELECT pg_snapshot_xip(t.since::pg_snapshot))))
          AND pg_visible_in_snapshot(e.xid, t.upto::pg_snapshot)
          AND e.name = %(name)s
       OFFSET 0) AS e
 WHERE (t.id > %(after_tick)s::bigint OR e.seq > %(after_seq)s::bigint)
   AND NOT EXISTS (SELECT FROM {schema}.delivery AS d
                    WHERE d.event_id = e.id AND d.handler = %(handler)s AND d.event_created_at = e.created_at
                   OFFSET 0)
 ORDER BY t.id, e.seq
