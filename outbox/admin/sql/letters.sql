-- Dead letters that nobody has put back yet, the latest first or the oldest. Index: dead_letter_died_at in
-- either direction (the planner sees through the CASE); by id the primary key.
SELECT event_id, handler, event_created_at, name AS event_name, key, payload::text AS payload_json, headers, attempts, error,
       traceback, died_at
  FROM {schema}.dead_letter AS l
 WHERE replayed_at IS NULL
   AND {selection}
 ORDER BY CASE WHEN %(oldest_first)s::boolean THEN died_at END, died_at DESC, event_id, handler
 LIMIT %(limit)s
