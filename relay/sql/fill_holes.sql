-- Every event between two positions of a handler, each handler with its own, that has no delivery row there gets one, to be
-- tried now. Returns how many, by handler: none proves that all below the upper position have an outcome. The log is read
-- once for all handlers. Index: event_xid; delivery's primary key, once per event and handler, or a hash of it.
--   `before`, `done`: snapshots of the tick before the lower position's and of its own; `prior`, `upto`: likewise above.
--   `before_xmax`, `before_xip`: the lowest `before`; `upto_xmax`: that of the highest `upto`.
WITH span AS {span}, filled AS (
  INSERT INTO {schema}.delivery (event_id, handler, event_created_at, state, attempts, due_at)
  SELECT e.id, s.handler, e.created_at, 'retrying', 0, clock_timestamp()
    FROM {schema}.event AS e
    JOIN span AS s ON s.name = e.name
   WHERE ((e.xid >= %(before_xmax)s::text::xid8 AND e.xid < %(upto_xmax)s::text::xid8)
          OR e.xid = ANY(%(before_xip)s::text[]::xid8[]))
     AND NOT pg_visible_in_snapshot(e.xid, s.before)
     AND pg_visible_in_snapshot(e.xid, s.upto)
     AND NOT (pg_visible_in_snapshot(e.xid, s.done) AND e.seq <= s.done_seq)
     AND (pg_visible_in_snapshot(e.xid, s.prior) OR e.seq <= s.upto_seq)
     AND NOT EXISTS (SELECT FROM {schema}.delivery AS d
                      WHERE d.event_id = e.id AND d.handler = s.handler AND d.event_created_at = e.created_at)
      ON CONFLICT DO NOTHING
  RETURNING handler
)
SELECT handler, count(*) FROM filled GROUP BY handler
