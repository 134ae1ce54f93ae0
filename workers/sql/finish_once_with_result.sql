-- As finish_once.sql, for handlers that returned something.
WITH finished AS (
  UPDATE {schema}.delivery AS d
     SET state = 'done', error = NULL, result = e.result::json, updated_at = clock_timestamp()
    FROM unnest(%(ids)s::uuid[], %(handlers)s::text[], %(ats)s::bigint[], %(beginnings)s::text[], %(results)s::text[])
         AS e (id, handler, at, beginning, result)
   WHERE d.event_id = e.id AND d.handler = e.handler AND d.state = 'dead' AND starts_with(d.error, e.beginning)
     AND d.event_created_at = 'epoch'::timestamptz + e.at * interval '1 microsecond'
  RETURNING d.event_id, d.handler
)
DELETE FROM {schema}.dead_letter AS l USING finished AS f WHERE l.event_id = f.event_id AND l.handler = f.handler
