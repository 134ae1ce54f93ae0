-- Erases events: each row stays where it is in the log, with its xid and seq, under a name that no handler has and without
-- content. What has no outcome is cancelled at every handler, what runs loses its lease, and errors and results may quote payloads. By
-- primary keys, in their order.
WITH chosen AS MATERIALIZED (
  SELECT e.id, e.created_at, e.name
    FROM unnest(%(ids)s::uuid[], %(ats)s::timestamptz[]) AS c (id, created_at)
    JOIN {schema}.event AS e ON e.id = c.id AND e.created_at = c.created_at
   ORDER BY e.id
     FOR UPDATE OF e
), remembered AS (
  INSERT INTO {schema}.tombstone (event_id, name) SELECT DISTINCT ON (id) id, name FROM chosen ORDER BY id
  ON CONFLICT DO NOTHING
), blanked AS (
  UPDATE {schema}.event AS e SET name = '(purged)', key = NULL, payload = 'null', headers = NULL
    FROM chosen AS c WHERE e.id = c.id AND e.created_at = c.created_at
)
INSERT INTO {schema}.delivery AS d (event_id, handler, event_created_at, state, attempts)
SELECT c.id, h.name, c.created_at, 'cancelled', 0
  FROM chosen AS c
 CROSS JOIN LATERAL (
         SELECT name FROM {schema}.handler WHERE event_name = c.name
          UNION SELECT handler FROM {schema}.delivery WHERE event_id = c.id AND event_created_at = c.created_at) AS h (name)
 ORDER BY c.id, h.name
ON CONFLICT (event_id, handler, event_created_at) DO UPDATE
   SET state = CASE d.state WHEN 'retrying' THEN 'cancelled' ELSE d.state END, due_at = NULL, lease = NULL, error = NULL,
       failures = NULL, result = NULL, updated_at = clock_timestamp()
