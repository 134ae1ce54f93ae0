-- Whether all events of a range are at or below a position. `before` and `own` are the snapshots of the tick before the
-- position's and of its own. Index: event_xid from the older snapshot on, in the range's own partition.
SELECT NOT EXISTS (
  SELECT FROM {schema}.event AS e
   WHERE e.created_at >= %(lower)s AND e.created_at < %(upper)s
     AND e.xid >= pg_snapshot_xmin(%(before)s::text::pg_snapshot)
     AND NOT pg_visible_in_snapshot(e.xid, %(before)s::text::pg_snapshot)
     AND NOT (pg_visible_in_snapshot(e.xid, %(own)s::text::pg_snapshot) AND e.seq <= %(seq)s::bigint))
