-- Events, the latest first, each with what came of it at its handlers: of the latest `most` in the span of ids and time those
-- that are selected. Index: event's primary key backwards (ids are UUIDv7 and rise with time), in the partitions that the
-- span leaves; delivery's primary key, once per event shown, and per event looked at when deliveries select.
SELECT e.id, e.name, e.key, e.created_at, e.payload::text AS payload_json, e.headers,
       coalesce((SELECT json_agg(json_build_object(
                          'handler', d.handler, 'state', d.state, 'attempts', d.attempts, 'replays', d.replays,
                          'due_at', d.due_at, 'updated_at', d.updated_at, 'error', d.error,
                          'result', d.result) ORDER BY d.handler)
                   FROM {schema}.delivery AS d
                  WHERE d.event_id = e.id AND d.event_created_at = e.created_at), '[]') AS deliveries
  FROM (SELECT * FROM {schema}.event AS e WHERE {span} ORDER BY e.id DESC LIMIT %(most)s) AS e
 WHERE {selection}
 ORDER BY e.id DESC
 LIMIT %(limit)s
