-- Cancels one event at these handlers, where it has no outcome and does not run as a retry. A first attempt that is about to
-- commit its row is waited for. By primary key, in its order.
INSERT INTO {schema}.delivery AS d (event_id, handler, event_created_at, state, attempts, error)
SELECT %(id)s, h.name, %(created_at)s, 'cancelled', 0, %(error)s FROM unnest(%(handlers)s::text[]) AS h (name) ORDER BY h.name
ON CONFLICT (event_id, handler, event_created_at) DO UPDATE
   SET state = 'cancelled', due_at = NULL, lease = NULL, error = excluded.error, updated_at = clock_timestamp()
 WHERE d.state = 'retrying' AND (d.lease IS NULL OR d.due_at <= clock_timestamp())
RETURNING handler
