-- The events of one tick: what its snapshot sees and the one before did not; the same rows in the same order for ever.
-- Index: event_xid, a range and the few transactions that were open at the earlier snapshot.
SELECT e.seq, e.id, e.name, coalesce(e.key, ''), e.payload, coalesce(e.headers::text, ''),
       (date_part('epoch', e.created_at) * 1000000)::bigint
  FROM {schema}.event AS e
 WHERE ((e.xid >= %(from_xmax)s::text::xid8 AND e.xid < %(to_xmax)s::text::xid8)
        OR e.xid = ANY(%(from_xip)s::text[]::xid8[]))
   AND pg_visible_in_snapshot(e.xid, %(to)s::text::pg_snapshot)
   AND e.name = ANY(%(names)s::text[])
   AND e.seq > %(after)s::bigint
 ORDER BY e.seq
