-- One transaction of a simulated day: some rows, spread over the seconds from `second` on.
INSERT INTO outbox.event (name, key, payload, created_at)
SELECT %(name)s, 'customer-' || mod(n, 10000), json_build_object('order_id', n, 'total', '49.90', 'note', repeat('x', 40)),
       %(day)s::timestamptz + make_interval(secs => %(second)s::float8 + (n - %(first)s) * 0.0001)
  FROM generate_series(%(first)s::bigint, %(first)s::bigint + %(rows)s - 1) AS n
