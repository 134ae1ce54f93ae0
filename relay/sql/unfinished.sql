-- After a restore, in the transaction of the rebase: the events that some handler is still to get, into a temporary table, and the
-- deliveries of these that another handler of the same name is not to get (it began later, and is past them). A handler is
-- past an event when its `done_to` is, by the snapshots of the ticks as they were restored. Transaction ids of events that
-- were added on this server already are no matter for those; they are younger than the last tick. Reads every event of every
-- name that has a handler, once.
CREATE TEMPORARY TABLE unfinished ON COMMIT DROP AS
WITH mark AS MATERIALIZED (
  SELECT h.name, h.event_name, h.done_seq,
         coalesce((SELECT snapshot FROM {schema}.tick WHERE id < h.done_tick ORDER BY id DESC LIMIT 1),
                  '1:1:'::pg_snapshot) AS before,
         coalesce((SELECT snapshot FROM {schema}.tick WHERE id = h.done_tick),
                  (SELECT snapshot FROM {schema}.tick WHERE id < h.done_tick ORDER BY id DESC LIMIT 1),
                  '1:1:'::pg_snapshot) AS own
    FROM {schema}.handler AS h
   WHERE h.done_tick IS NOT NULL
)
SELECT e.id, e.created_at, e.seq, m.name AS handler,
       e.created_at <= (SELECT max(created_at) FROM {schema}.tick)
         AND (pg_visible_in_snapshot(e.xid, m.before)
              OR (pg_visible_in_snapshot(e.xid, m.own) AND e.seq <= m.done_seq)) AS passed
  FROM {schema}.event AS e
  JOIN mark AS m ON m.event_name = e.name
 WHERE NOT EXISTS (SELECT FROM {schema}.delivery AS d
                    WHERE d.event_id = e.id AND d.handler = m.name AND d.event_created_at = e.created_at)
