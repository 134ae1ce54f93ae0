-- One transaction of a past that was handled: rows {first} to {last} of {total}, spread evenly over the {days} days before
-- now, with ids that rise with that time as those of `outbox.add` do. Each has its outcome at the handler of its name; one
-- in {retrying} is to be retried and one in {dead} is dead there.
WITH placed AS (
  SELECT n, now() - interval '{days} days' + interval '{days} days' * (n::float8 / {total}) AS at
    FROM generate_series({first}::bigint, {last}) AS n
), added AS (
  INSERT INTO outbox.event (id, name, key, payload, created_at)
  SELECT encode(substring(int8send(floor(extract(epoch FROM at) * 1000)::bigint) FROM 3)
                || set_byte(substring(r FROM 7), 0, (get_byte(r, 6) & 15) | 112), 'hex')::uuid,
         'bench' || n % 5, 'customer-' || n % 10000, json_build_object('order_id', n, 'total', '49.90', 'note', 'neighbours'), at
    FROM placed, LATERAL (SELECT uuid_send(gen_random_uuid()) AS r WHERE n IS NOT NULL) AS random
  RETURNING *
), delivered AS (
  INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts, due_at, error, updated_at)
  SELECT id, 'handler' || right(name, 1), created_at, state, 1, CASE WHEN state = 'retrying' THEN now() + interval '1 hour' END,
         CASE WHEN state <> 'done' THEN 'Refused: order ' || seq || ' is not there' END, created_at
    FROM (SELECT *, CASE WHEN seq % {retrying} = 0 THEN 'retrying' WHEN seq % {dead} = 0 THEN 'dead' ELSE 'done' END AS state
            FROM added) AS decided
   -- One event, long ago, is stuck at its handler.
   WHERE seq <> 3
  RETURNING *
)
INSERT INTO outbox.dead_letter (event_id, handler, event_created_at, name, key, payload, attempts, error, died_at)
SELECT d.event_id, d.handler, d.event_created_at, a.name, a.key, a.payload, 1, d.error, d.event_created_at
  FROM delivered AS d JOIN added AS a ON a.id = d.event_id WHERE d.state = 'dead'
