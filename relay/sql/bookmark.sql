-- Where the main feed and its streams stand after what was just published. Committed without waiting for the disk: losing it
-- only means reading again what Redis then says it has already.
WITH unflushed AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true)),
     marked AS (
  INSERT INTO {schema}.stream AS s (name, tick, seq)
  SELECT * FROM unnest(%(names)s::text[], %(ticks)s::bigint[], %(seqs)s::bigint[])
  ON CONFLICT (name) DO UPDATE SET tick = excluded.tick, seq = excluded.seq),
     counted AS (UPDATE {schema}.tick SET count = coalesce(count, 0) + %(count)s::bigint WHERE id = %(tick)s::bigint)
UPDATE {schema}.relay SET tick = %(tick)s::bigint, seq = %(seq)s::bigint, leader = %(leader)s, heartbeat = clock_timestamp()
  FROM unflushed
