-- Whether this is another server than the one that the ticks were taken on, by its identifier and by its transaction counter.
-- Index: tick's primary key.
SELECT r.system_identifier, c.system_identifier::text,
       coalesce((SELECT pg_snapshot_xmax(snapshot) FROM {schema}.tick ORDER BY id DESC LIMIT 1)
                > pg_snapshot_xmax(pg_current_snapshot()), false)
  FROM {schema}.relay AS r, pg_control_system() AS c
