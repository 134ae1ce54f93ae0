-- The next events to purge, in the order of their ids. Index: event's primary key from the place on; keys and payloads have
-- none, so it reads what is retained, once.
SELECT e.id, e.created_at
  FROM {schema}.event AS e
 WHERE e.name <> '(purged)'
   AND (%(place_id)s::uuid IS NULL OR (e.id, e.created_at) > (%(place_id)s::uuid, %(place_at)s::timestamptz))
   AND {selection}
 ORDER BY e.id, e.created_at
 LIMIT %(batch)s
