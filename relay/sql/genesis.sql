-- The log begins anew: one tick, which sees all events but the unfinished ones, and everybody behind it. What no tick could
-- tell from a transaction that is still to come gets the oldest transaction id there is. A handler that is not admitted yet
-- is not to begin before it registered, hence the tick's time. Scans event once.
WITH settled AS (
  UPDATE {schema}.event SET xid = '3'
   WHERE NOT pg_visible_in_snapshot(xid, %(snapshot)s::text::pg_snapshot) AND xid <> pg_current_xact_id()
), known AS MATERIALIZED (
  SELECT greatest(max(id) + 1, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) AS id,
         least(max(created_at), (SELECT min(registered_at) FROM {schema}.handler WHERE done_tick IS NULL)) AS created_at
    FROM {schema}.tick
), forgotten AS (
  DELETE FROM {schema}.tick
), begun AS (
  INSERT INTO {schema}.tick (id, snapshot, created_at, count)
  SELECT id, %(snapshot)s::text::pg_snapshot, coalesce(created_at, clock_timestamp()), 0 FROM known
), streams AS (
  UPDATE {schema}.stream SET tick = 0, seq = 0
), handlers AS (
  UPDATE {schema}.handler AS h
     SET attached = false, done_tick = k.id, done_seq = %(end)s::bigint, fed_tick = k.id, fed_seq = %(end)s::bigint
    FROM known AS k WHERE h.done_tick IS NOT NULL
)
UPDATE {schema}.relay AS r
   SET tick = k.id, seq = 0, system_identifier = c.system_identifier::text
  FROM known AS k, pg_control_system() AS c
