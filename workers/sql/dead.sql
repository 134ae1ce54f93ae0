-- A first attempt that failed for good, with its dead letter, unless somebody else recorded an outcome first. The copy is the
-- event's own row, by primary key; of an entry without one (somebody else's) it is the text as it came.
WITH died AS (
  INSERT INTO {schema}.delivery (event_id, handler, event_created_at, state, attempts, error, failures)
  VALUES (%(id)s::uuid, %(handler)s, 'epoch'::timestamptz + %(at)s * interval '1 microsecond', 'dead', 1, %(error)s,
          {schema}.with_failure(NULL, 1, %(error)s))
  ON CONFLICT DO NOTHING
  RETURNING event_id, handler, event_created_at, attempts, error
)
INSERT INTO {schema}.dead_letter (event_id, handler, event_created_at, name, key, payload, headers, attempts, error, traceback)
SELECT d.event_id, d.handler, d.event_created_at, coalesce(e.name, %(name)s), e.key,
       coalesce(e.payload, to_json(%(payload)s::text)), e.headers, d.attempts, d.error,
       %(traceback)s
  FROM died AS d
  LEFT JOIN {schema}.event AS e ON e.id = d.event_id AND e.created_at = d.event_created_at
ON CONFLICT (event_id, handler) DO UPDATE
  SET attempts = excluded.attempts, error = excluded.error, traceback = excluded.traceback, died_at = clock_timestamp(),
      replayed_at = NULL
