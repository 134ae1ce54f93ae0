-- A retry that failed for good, with its dead letter, only while its lease stands.
WITH died AS (
  UPDATE {schema}.delivery AS d
     SET state = 'dead', attempts = d.attempts + %(cost)s, due_at = NULL, lease = NULL, error = %(error)s,
         failures = {schema}.with_failure(d.failures, d.attempts + %(cost)s, %(error)s), updated_at = clock_timestamp()
   WHERE d.event_id = %(id)s::uuid AND d.handler = %(handler)s AND d.lease = %(lease)s::uuid
     AND d.event_created_at = 'epoch'::timestamptz + %(at)s * interval '1 microsecond'
  RETURNING d.event_id, d.handler, d.event_created_at, d.attempts, d.error
)
INSERT INTO {schema}.dead_letter (event_id, handler, event_created_at, name, key, payload, headers, attempts, error, traceback)
SELECT d.event_id, d.handler, d.event_created_at, %(name)s, %(key)s, %(payload)s::json, %(headers)s::json, d.attempts,
       d.error, %(traceback)s
  FROM died AS d
ON CONFLICT (event_id, handler) DO UPDATE
  SET attempts = excluded.attempts, error = excluded.error, traceback = excluded.traceback, died_at = clock_timestamp(),
      replayed_at = NULL
RETURNING event_id::text, handler
