-- What of these deliveries has a row, and under which lease. By primary key.
SELECT d.event_id::text, d.lease::text
  FROM unnest(%(ids)s::uuid[], %(handlers)s::text[], %(ats)s::bigint[]) AS e (id, handler, at)
  JOIN {schema}.delivery AS d
    ON d.event_id = e.id AND d.handler = e.handler
   AND d.event_created_at = 'epoch'::timestamptz + e.at * interval '1 microsecond'
