-- What stands of one delivery. By primary key.
SELECT d.state, d.lease::text
  FROM {schema}.delivery AS d
 WHERE d.event_id = %(id)s::uuid AND d.handler = %(handler)s
   AND d.event_created_at = 'epoch'::timestamptz + %(at)s * interval '1 microsecond'
