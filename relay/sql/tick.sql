-- One snapshot = one batch: writes a tick if anything is new since the last one, else nothing (and then burns no
-- transaction id). It commits by itself, flushed, before anything of it is published. With it come the first events of its
-- batch, in no order: all parts of a statement use one snapshot, so what is visible to it is what this tick's snapshot sees.
-- One row without an event tells of a tick that has none of these names.
-- Index: event_xid, probed four times per partition. What is new is asked in two parts, a range and a list: with OR a plan
-- for unknown values would be a full scan.
WITH taken AS (
  INSERT INTO {schema}.tick (id, snapshot)
  SELECT greatest(%(floor)s::bigint, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint), pg_current_snapshot()
   WHERE EXISTS (SELECT FROM {schema}.event AS e WHERE e.xid >= %(xmax)s::text::xid8)
      OR EXISTS (SELECT FROM {schema}.event AS e WHERE e.xid = ANY(%(xip)s::text[]::xid8[]))
  RETURNING id, snapshot
)
SELECT n.seq, n.id, n.name, coalesce(n.key, ''), n.payload, coalesce(n.headers::text, ''),
       (date_part('epoch', n.created_at) * 1000000)::bigint, t.id, t.snapshot::text
  FROM taken AS t
  LEFT JOIN LATERAL (
       SELECT e.* FROM {schema}.event AS e
        WHERE e.xid >= %(xmax)s::text::xid8 AND e.name = ANY(%(names)s::text[])
       UNION ALL
       SELECT e.* FROM {schema}.event AS e
        WHERE e.xid = ANY(%(xip)s::text[]::xid8[]) AND e.name = ANY(%(names)s::text[])
        LIMIT %(limit)s) AS n ON true
 ORDER BY n.seq
