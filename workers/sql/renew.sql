-- Renews leases of retries that still run, and returns those that stand. One whose row is locked is passed by, and stands:
-- most often that is the COMMIT of its own run, and nobody claims it meanwhile. By primary key.
WITH standing AS MATERIALIZED (
  SELECT d.event_id, d.handler, d.event_created_at, d.lease
    FROM unnest(%(ids)s::uuid[], %(handlers)s::text[], %(ats)s::bigint[], %(leases)s::uuid[]) AS e (id, handler, at, lease)
    JOIN {schema}.delivery AS d
      ON d.event_id = e.id AND d.handler = e.handler AND d.lease = e.lease
     AND d.event_created_at = 'epoch'::timestamptz + e.at * interval '1 microsecond'
), free AS MATERIALIZED (
  SELECT d.event_id, d.handler, d.event_created_at
    FROM standing AS s
    JOIN {schema}.delivery AS d USING (event_id, handler, event_created_at, lease)
     FOR UPDATE OF d SKIP LOCKED
), renewed AS (
  UPDATE {schema}.delivery AS d
     SET due_at = clock_timestamp() + %(lease)s * interval '1 second'
    FROM free AS f
   WHERE d.event_id = f.event_id AND d.handler = f.handler AND d.event_created_at = f.event_created_at
)
SELECT s.lease::text FROM standing AS s
