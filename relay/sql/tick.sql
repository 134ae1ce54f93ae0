-- One snapshot = one batch: writes a tick if anything is new since the last one, else nothing (and then burns no
-- transaction id). It commits by itself, flushed, before anything of it is published. With it comes its batch, in order, if
-- that is small: all parts of a statement use one snapshot, so what is visible to it is what this tick's snapshot sees. A
-- tick whose batch is larger, or has none of these names, comes as one row without an event; `whole` tells which.
-- Index: event_xid, one probe per partition; with the part in tick_open.sql, two. With OR a plan for unknown
-- values would be a full scan.
WITH fresh AS MATERIALIZED (
  (SELECT e.* FROM {schema}.event AS e WHERE e.xid >= %(xmax)s::text::xid8 LIMIT {small} + 1)
{open}), taken AS (
  INSERT INTO {schema}.tick (id, snapshot)
  SELECT greatest(%(floor)s::bigint, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint), pg_current_snapshot()
   WHERE EXISTS (SELECT FROM fresh)
  RETURNING id, snapshot
), size AS (
  SELECT count(*) <= {small} AND coalesce(sum(octet_length(f.payload::text)), 0) <= {bytes} AS whole FROM fresh AS f
)
SELECT n.seq, n.id, n.name, coalesce(n.key, ''), n.payload, coalesce(n.headers::text, ''),
       (date_part('epoch', n.created_at) * 1000000)::bigint, t.id, t.snapshot::text, s.whole
  FROM taken AS t CROSS JOIN size AS s
  LEFT JOIN fresh AS n ON s.whole AND n.name = ANY(%(names)s::text[])
 ORDER BY n.seq
