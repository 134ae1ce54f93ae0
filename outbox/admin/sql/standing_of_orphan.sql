-- The same of a handler that has no row and retries none the less: they were put back, or recorded, while it was forgotten.
-- The event's name is that of a letter or an event that is retained. Index: delivery_due, primary keys, handler_event_name,
-- dead_letter_handler.
SELECT n.event_name, false AS served,
       EXISTS (SELECT FROM {schema}.handler AS o WHERE o.event_name = n.event_name) AS siblings,
       (SELECT count(*) FROM {schema}.delivery AS d WHERE d.handler = %(name)s AND d.state = 'retrying') AS retrying,
       (SELECT count(*) FROM {schema}.dead_letter AS l WHERE l.handler = %(name)s AND l.replayed_at IS NULL) AS letters
  FROM (SELECT event_id, event_created_at FROM {schema}.delivery WHERE handler = %(name)s AND state = 'retrying' LIMIT 1) AS d
  LEFT JOIN {schema}.dead_letter AS l ON l.event_id = d.event_id AND l.handler = %(name)s
  LEFT JOIN {schema}.event AS e ON e.id = d.event_id AND e.created_at = d.event_created_at
 CROSS JOIN LATERAL (SELECT coalesce(l.name, e.name, '?') AS event_name) AS n
