-- One transaction of the backlog: rows {first} to {last} into {table}, {names} event names in turn. The payload has the
-- shape of write.sql's, filled up to {payload} bytes.
INSERT INTO {table} (name, key, payload)
SELECT 'bench' || n % {names}, 'customer-' || n % 10000, (rpad(start, {payload} - 2, 'x') || '"}')::json
  FROM generate_series({first}::bigint, {last}) AS n,
       LATERAL (SELECT format('{"order_id": %s, "customer": "c-%s", "total": "49.90", "note": "', n, n % 10000)) AS made (start);
