-- Dead letters of events that were purged within a day, those of their edited copies, and those that are selected themselves, because their event went with
-- its partition: these leave tombstones, and a delivery that waits to run again is cancelled. Index: tombstone_purged_at,
-- primary keys; a scan of all letters.
WITH gone AS (
  DELETE FROM {schema}.dead_letter AS l
   WHERE l.event_id IN (SELECT event_id FROM {schema}.tombstone WHERE purged_at > clock_timestamp() - interval '1 day')
      OR l.headers ->> 'outbox-copy-of'
         IN (SELECT event_id::text FROM {schema}.tombstone WHERE purged_at > clock_timestamp() - interval '1 day')
      OR ({selection})
  RETURNING l.event_id, l.handler, l.event_created_at, l.name
), remembered AS (
  INSERT INTO {schema}.tombstone (event_id, name) SELECT DISTINCT ON (event_id) event_id, name FROM gone ORDER BY event_id
  ON CONFLICT DO NOTHING
), cancelled AS (
  UPDATE {schema}.delivery AS d
     SET state = CASE d.state WHEN 'retrying' THEN 'cancelled' ELSE d.state END, due_at = NULL, lease = NULL, error = NULL,
         failures = NULL, result = NULL, updated_at = clock_timestamp()
    FROM gone AS g
   WHERE d.event_id = g.event_id AND d.handler = g.handler AND d.event_created_at = g.event_created_at
)
SELECT count(*) FROM gone
