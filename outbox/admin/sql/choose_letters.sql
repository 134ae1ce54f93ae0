-- The next dead letters to put back, the oldest first. Letters that another replay holds are left to it, and those of a
-- handler that was forgotten: nobody would run them. What dies again meanwhile stands behind the place already reached or
-- died after `began`, and is not touched twice.
-- Index: dead_letter_died_at, or by id the primary key; handler's primary key. OFFSET 0 keeps the order of the letters.
SELECT l.event_id, l.handler, l.event_created_at, l.died_at AS at, l.name, l.key, l.payload::text AS payload_json,
       l.headers::text AS headers
  FROM {schema}.dead_letter AS l
 WHERE l.replayed_at IS NULL
   AND l.died_at <= %(began)s
   AND (%(place_at)s::timestamptz IS NULL
        OR (l.died_at, l.event_id, l.handler) > (%(place_at)s, %(place_id)s::uuid, %(place_handler)s::text))
   AND EXISTS (SELECT FROM {schema}.handler AS h WHERE h.name = l.handler OFFSET 0)
   AND {selection}
 ORDER BY l.died_at, l.event_id, l.handler
 LIMIT %(batch)s
   FOR UPDATE SKIP LOCKED
