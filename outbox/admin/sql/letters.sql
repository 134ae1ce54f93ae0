-- Dead letters that nobody has put back yet: of the first `most` in the span of ids and time, the latest or the oldest, those
-- that are selected. Index: dead_letter_died_at in either direction; by id the primary key. Those that
-- die later belong to runs under way that must not be repeated (begin_once.sql).
SELECT l.event_id, l.handler, l.event_created_at, l.name AS event_name, l.key, l.payload::text AS payload_json, l.headers,
       l.attempts, l.error, l.traceback, l.died_at
  FROM (SELECT * FROM {schema}.dead_letter AS l
         WHERE l.replayed_at IS NULL AND l.died_at <= clock_timestamp() AND {span} ORDER BY l.died_at {order}
         LIMIT %(most)s) AS l
 WHERE {selection}
 ORDER BY l.died_at {order}, l.event_id, l.handler
 LIMIT %(limit)s
