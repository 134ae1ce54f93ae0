-- Edited copies of what was purged within a day. Reads the retained copies: by name, as there is no index, all events.
SELECT e.id, e.created_at
  FROM {schema}.event AS e
 WHERE e.name = '(copy)'
   AND e.headers ->> 'outbox-copy-of' IN (SELECT event_id::text FROM {schema}.tombstone WHERE purged_at > clock_timestamp() - interval '1 day')
