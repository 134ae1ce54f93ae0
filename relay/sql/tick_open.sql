-- The part of tick.sql for transactions that were open at the last tick: what they wrote is new when they have ended. Those
-- that are still open are not looked up: what a large one has written so far would be read, and not seen, at every poll.
  UNION ALL
  (SELECT e.* FROM {schema}.event AS e
    WHERE e.xid = ANY(ARRAY(SELECT o.xid FROM unnest(%(xip)s::text[]::xid8[]) AS o (xid)
                             WHERE pg_visible_in_snapshot(o.xid, pg_current_snapshot())))
    LIMIT {small} + 1)
