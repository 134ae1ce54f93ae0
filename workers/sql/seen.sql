-- Which of these events have an outcome for this handler already. By primary key; the bounds of event_created_at keep it
-- to the partitions that the events are in. With it a row without an id: up to when outcomes may be gone, if that
-- concerns any of these. The same snapshot sees both, so an outcome that was dropped is not taken for one that never was.
SELECT d.event_id::text, NULL::bigint
  FROM {schema}.delivery AS d
 WHERE d.event_id = ANY (%(ids)s::uuid[]) AND d.handler = %(handler)s
   AND d.event_created_at BETWEEN %(first)s AND %(last)s
 UNION ALL
SELECT NULL, (extract(epoch FROM r.retained_from) * 1000000)::bigint
  FROM {schema}.relay AS r
 WHERE r.retained_from > %(first)s
