-- Which of these events have an outcome for this handler already. By primary key; the bounds of event_created_at keep it
-- to the partitions that the events are in.
SELECT d.event_id::text
  FROM {schema}.delivery AS d
 WHERE d.event_id = ANY (%(ids)s::uuid[]) AND d.handler = %(handler)s
   AND d.event_created_at BETWEEN %(first)s AND %(last)s
