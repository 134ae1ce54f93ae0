-- pgbench script: what an endpoint commits, one business row and one event. The id is made like outbox.add's, a UUIDv7,
-- by PostgreSQL's own function, so that making it weighs as little as when the application does.
\set customer random(1, 100000)
BEGIN;
INSERT INTO purchase (customer, total) VALUES (:customer, 4990);
INSERT INTO outbox.event (id, name, key, payload)
  VALUES (uuidv7(), 'order_placed', :customer, '{"order_id": 123456, "customer": "c-000123", "items": [{"sku": "A-100", "quantity": 2}], "total": "49.90"}');
COMMIT;
