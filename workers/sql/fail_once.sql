-- A run that must not be repeated and that failed: dead already, and now with its own error. By primary key.
WITH failed AS (
  UPDATE {schema}.delivery AS d
     SET error = %(error)s, failures = {schema}.with_failure(d.failures, d.attempts, %(error)s), updated_at = clock_timestamp()
   WHERE d.event_id = %(id)s::uuid AND d.handler = %(handler)s AND d.state = 'dead' AND starts_with(d.error, %(beginning)s)
     AND d.event_created_at = 'epoch'::timestamptz + %(at)s * interval '1 microsecond'
  RETURNING d.event_id, d.handler
)
UPDATE {schema}.dead_letter AS l
   SET error = %(error)s, traceback = %(traceback)s, died_at = clock_timestamp()
  FROM failed AS f
 WHERE l.event_id = f.event_id AND l.handler = f.handler
