-- Every event of one name between two positions that has no delivery row at one handler gets one, to be tried now. Finding none
-- proves that all below the upper position have an outcome. Index: event_xid; delivery's primary key, once per event.
--   `before`, `done`: snapshots of the tick before the lower position's and of its own; `prior`, `upto`: likewise above.
INSERT INTO {schema}.delivery (event_id, handler, event_created_at, state, attempts, due_at)
SELECT e.id, %(handler)s, e.created_at, 'retrying', 0, clock_timestamp()
  FROM {schema}.event AS e
 WHERE ((e.xid >= %(before_xmax)s::text::xid8 AND e.xid < %(upto_xmax)s::text::xid8)
        OR e.xid = ANY(%(before_xip)s::text[]::xid8[]))
   AND pg_visible_in_snapshot(e.xid, %(upto)s::text::pg_snapshot)
   AND NOT (pg_visible_in_snapshot(e.xid, %(done)s::text::pg_snapshot) AND e.seq <= %(done_seq)s::bigint)
   AND (pg_visible_in_snapshot(e.xid, %(prior)s::text::pg_snapshot) OR e.seq <= %(upto_seq)s::bigint)
   AND e.name = %(name)s
   AND NOT EXISTS (SELECT FROM {schema}.delivery AS d
                    WHERE d.event_id = e.id AND d.handler = %(handler)s AND d.event_created_at = e.created_at)
    ON CONFLICT DO NOTHING
