-- The run of a delivery begins whose worker has died before: if this lease ends without an outcome, that is a crash. By
-- primary key, and only while the lease stands.
UPDATE {schema}.delivery AS d
   SET begun = true
 WHERE d.event_id = %(id)s::uuid AND d.handler = %(handler)s AND d.lease = %(lease)s::uuid
   AND d.event_created_at = 'epoch'::timestamptz + %(at)s * interval '1 microsecond'
