-- Where an event stands at each handler that has it or is to have it, and at one that is named, known or not (then
-- `unannounced`, if no worker has announced that it handles such events). An event that went with its partition stands only
-- where it died, and where its letter was put back. Index: primary keys of event, delivery, dead_letter and handler,
-- handler_event_name.
WITH retained AS (
  SELECT name AS event_name, created_at, true AS retained FROM {schema}.event WHERE id = %(id)s
), found AS (
  SELECT * FROM retained
   UNION
  SELECT name, event_created_at, false FROM {schema}.dead_letter
   WHERE event_id = %(id)s AND NOT EXISTS (SELECT FROM retained)
)
SELECT e.event_name, e.created_at, h.handler,
       CASE WHEN d.state IS NULL THEN CASE WHEN e.retained THEN 'waiting' ELSE 'dead' END
            WHEN d.lease IS NOT NULL AND d.due_at > clock_timestamp() THEN 'running'
            ELSE d.state END AS state,
       d.state IS NULL AND e.retained
         AND NOT EXISTS (SELECT FROM {schema}.handler AS k WHERE k.name = h.handler AND k.event_name = e.event_name)
         AS unannounced
  FROM found AS e
  LEFT JOIN LATERAL (
         SELECT name AS handler FROM {schema}.handler WHERE event_name = e.event_name AND e.retained
          UNION SELECT handler FROM {schema}.delivery WHERE event_id = %(id)s AND event_created_at = e.created_at
          UNION SELECT handler FROM {schema}.dead_letter WHERE event_id = %(id)s AND NOT e.retained
          UNION SELECT %(handler)s::text WHERE %(handler)s::text IS NOT NULL AND e.retained
       ) AS h ON %(handler)s::text IS NULL OR h.handler = %(handler)s
  LEFT JOIN {schema}.delivery AS d
    ON d.event_id = %(id)s AND d.handler = h.handler AND d.event_created_at = e.created_at
 ORDER BY h.handler
