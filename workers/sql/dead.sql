-- A first attempt that failed for good, with its dead letter, unless somebody else recorded an outcome first.
WITH died AS (
  INSERT INTO {schema}.delivery (event_id, handler, event_created_at, state, attempts, error)
  VALUES (%(id)s::uuid, %(handler)s, 'epoch'::timestamptz + %(at)s * interval '1 microsecond', 'dead', 1, %(error)s)
  ON CONFLICT DO NOTHING
  RETURNING event_id, handler, event_created_at, attempts, error
)
INSERT INTO {schema}.dead_letter (event_id, handler, event_created_at, name, key, payload, headers, attempts, error)
SELECT d.event_id, d.handler, d.event_created_at, %(name)s, %(key)s, %(payload)s::json, %(headers)s::json, d.attempts,
       d.error
  FROM died AS d
ON CONFLICT (event_id, handler) DO UPDATE
  SET attempts = excluded.attempts, error = excluded.error, died_at = clock_timestamp(), replayed_at = NULL
