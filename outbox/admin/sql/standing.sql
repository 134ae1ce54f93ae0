-- Where an event stands at each handler that has it or is to have it, and at one that is named, known or not. Index: the
-- event's and the delivery's primary keys, handler_event_name.
SELECT e.name AS event_name, e.created_at, h.handler,
       CASE WHEN d.state IS NULL THEN 'waiting'
            WHEN d.lease IS NOT NULL AND d.due_at > clock_timestamp() THEN 'running'
            ELSE d.state END AS state
  FROM {schema}.event AS e
  LEFT JOIN LATERAL (
         SELECT name AS handler FROM {schema}.handler WHERE event_name = e.name
          UNION SELECT handler FROM {schema}.delivery WHERE event_id = e.id AND event_created_at = e.created_at
          UNION SELECT %(handler)s::text WHERE %(handler)s::text IS NOT NULL
       ) AS h ON %(handler)s::text IS NULL OR h.handler = %(handler)s
  LEFT JOIN {schema}.delivery AS d
    ON d.event_id = e.id AND d.handler = h.handler AND d.event_created_at = e.created_at
 WHERE e.id = %(id)s
 ORDER BY h.handler
