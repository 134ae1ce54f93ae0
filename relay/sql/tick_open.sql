-- The part of tick.sql for transactions that were open at the last tick: what they wrote is new when they have ended.
  UNION ALL
  (SELECT e.* FROM {schema}.event AS e WHERE e.xid = ANY(%(xip)s::text[]::xid8[]) LIMIT {small} + 1)
