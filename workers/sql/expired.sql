-- Redelivered events from before what is retained, of which nobody can tell any more whether they were handled: dead, with the
-- entry itself as the letter's copy. A letter that is there already stays as it is. By primary key.
WITH entry AS (
  SELECT e.id, 'epoch'::timestamptz + e.at * interval '1 microsecond' AS created_at, e.name, e.key, e.payload, e.headers
    FROM unnest(%(ids)s::uuid[], %(ats)s::bigint[], %(names)s::text[], %(keys)s::text[], %(payloads)s::text[],
                %(headers)s::text[]) AS e (id, at, name, key, payload, headers)
), died AS (
  INSERT INTO {schema}.delivery (event_id, handler, event_created_at, state, attempts, error)
  SELECT id, %(handler)s, created_at, 'dead', 0, %(error)s FROM entry ORDER BY id
  ON CONFLICT DO NOTHING
  RETURNING event_id
)
INSERT INTO {schema}.dead_letter (event_id, handler, event_created_at, name, key, payload, headers, attempts, error)
SELECT e.id, %(handler)s, e.created_at, e.name, e.key, e.payload::json, e.headers::json, 0, %(error)s
  FROM entry AS e JOIN died AS d ON d.event_id = e.id
ON CONFLICT (event_id, handler) DO NOTHING
