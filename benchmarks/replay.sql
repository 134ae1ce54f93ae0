-- Events of one name that failed for good at one handler: rows {first} to {last}, as the worker would have left them. They are
-- added before the handler is registered, and have an outcome, so no feed publishes them.
WITH added AS (
  INSERT INTO outbox.event (name, key, payload)
  SELECT 'order_placed', 'customer-' || n % 10000, format('{"order_id": %s, "sent_ns": 0}', n)::json
    FROM generate_series({first}::bigint, {last}) AS n
  RETURNING *
), failed AS (
  INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts, error)
  SELECT id, 'started', created_at, 'dead', 10, 'ConnectionError: away' FROM added
)
INSERT INTO outbox.dead_letter (event_id, handler, event_created_at, name, key, payload, attempts, error)
SELECT id, 'started', created_at, name, key, payload, 10, 'ConnectionError: away' FROM added
