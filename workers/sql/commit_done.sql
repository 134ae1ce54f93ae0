-- A first attempt that worked: with its COMMIT the end of its handler's transaction. A delivery that has a row already
-- violates the primary key, and COMMIT is not reached.
INSERT INTO {schema}.delivery (event_id, handler, event_created_at, state, attempts)
VALUES ('{id}', '{handler}', 'epoch'::timestamptz + {at} * interval '1 microsecond', 'done', 1)
