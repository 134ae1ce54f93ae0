-- A run that must not be repeated begins: its delivery is dead, with its dead letter, whatever happens from here on. Of a
-- retry only while its lease stands; asked again after a lost reply it finds its own error, which names the run. The copy
-- of the event is its own row, by primary key; of an entry without one it is the text as it came. The letter dies when the
-- lease ends, which renew_once.sql puts off: nobody finds or replays it before.
WITH begun AS (
  INSERT INTO {schema}.delivery AS d (event_id, handler, event_created_at, state, attempts, error)
  VALUES (%(id)s::uuid, %(handler)s, 'epoch'::timestamptz + %(at)s * interval '1 microsecond', 'dead', 1, %(error)s)
  ON CONFLICT (event_id, handler, event_created_at) DO UPDATE
     SET state = 'dead', attempts = d.attempts + (d.state = 'retrying')::integer, due_at = NULL, lease = NULL,
         error = excluded.error, updated_at = clock_timestamp()
   WHERE d.lease = %(lease)s::uuid OR (d.state = 'dead' AND d.error = excluded.error)
  RETURNING event_id, handler, event_created_at, attempts, error
)
INSERT INTO {schema}.dead_letter (event_id, handler, event_created_at, name, key, payload, headers, attempts, error, died_at)
SELECT b.event_id, b.handler, b.event_created_at, coalesce(nullif(e.name, '(copy)'), %(name)s), e.key,
       coalesce(e.payload, to_json(%(payload)s::text)), e.headers, b.attempts, b.error,
       clock_timestamp() + %(term)s * interval '1 second'
  FROM begun AS b
  LEFT JOIN {schema}.event AS e ON e.id = b.event_id AND e.created_at = b.event_created_at
ON CONFLICT (event_id, handler) DO UPDATE
  SET attempts = excluded.attempts, error = excluded.error, traceback = NULL, died_at = excluded.died_at, replayed_at = NULL
RETURNING event_id::text
