-- One snapshot = one batch: writes a tick if anything is new since the last one, else nothing (and then burns no
-- transaction id). EXISTS and pg_current_snapshot() use the same statement snapshot. It commits by itself, flushed, before
-- anything of it is published. Index: event_xid, probed twice per partition: one EXISTS with OR would be a full scan in a
-- plan for unknown values.
INSERT INTO {schema}.tick (id, snapshot)
SELECT greatest(%(floor)s::bigint, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint), pg_current_snapshot()
 WHERE EXISTS (SELECT FROM {schema}.event AS e WHERE e.xid >= %(xmax)s::text::xid8)
    OR EXISTS (SELECT FROM {schema}.event AS e WHERE e.xid = ANY(%(xip)s::text[]::xid8[]))
RETURNING id, snapshot::text
