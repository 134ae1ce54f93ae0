-- A handler as whoever wants to remove or rename it sees it; its row is held until the transaction ends. It is served while a
-- worker process that runs it was seen in the last 30 seconds. Index: primary keys, handler_event_name, delivery_due,
-- dead_letter_handler; `worker` is small.
SELECT h.event_name, h.done_tick,
       EXISTS (SELECT FROM {schema}.worker AS w
                WHERE h.name = ANY(w.handlers) AND w.seen_at > clock_timestamp() - interval '30 seconds') AS served,
       EXISTS (SELECT FROM {schema}.handler AS o WHERE o.event_name = h.event_name AND o.name <> h.name) AS siblings,
       (SELECT count(*) FROM {schema}.delivery AS d WHERE d.handler = h.name AND d.state = 'retrying') AS retrying,
       (SELECT count(*) FROM {schema}.dead_letter AS l WHERE l.handler = h.name AND l.replayed_at IS NULL) AS letters
  FROM {schema}.handler AS h
 WHERE h.name = %(name)s
   FOR UPDATE OF h
