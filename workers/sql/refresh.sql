-- Where these handlers stand, whether somebody holds them back, and in how many seconds their next retry is due. By hold's
-- primary key and the partial index delivery_due.
SELECT h.name, h.attached, h.done_tick, h.done_seq,
       EXISTS (SELECT FROM {schema}.hold AS o WHERE (o.what, o.name) IN (('handler', h.name), ('event', h.event_name))),
       extract(epoch FROM d.due_at - clock_timestamp())::float8
  FROM {schema}.handler AS h
  LEFT JOIN LATERAL (
    SELECT r.due_at FROM {schema}.delivery AS r
     WHERE r.handler = h.name AND r.state = 'retrying'
     ORDER BY r.due_at
     LIMIT 1
  ) AS d ON true
 WHERE h.name = ANY (%(handlers)s)
