-- Of the events that go on the new log, those that a handler is not to get count as done by it. Reads `unfinished`.
INSERT INTO {schema}.delivery (event_id, handler, event_created_at, state, attempts)
SELECT u.id, u.handler, u.created_at, 'done', 0
  FROM unfinished AS u
 WHERE u.passed AND (u.id, u.created_at) IN (SELECT id, created_at FROM unfinished WHERE NOT passed)
    ON CONFLICT DO NOTHING
