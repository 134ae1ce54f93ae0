-- Takes due retries of these handlers under a lease, at most as many of each as it has room for. By the partial index
-- delivery_due. A lease that ended without an outcome means that its worker died. The first time nobody knows whether it
-- ran: a crash, but no attempt. From then on only a run that began is a crash, and an attempt, too. The event comes from its
-- partition or, when that is gone, from the dead letter's copy; an edited copy has its handler's event name. `suspects`
-- says whether those whose worker died `suspect` times may come.
WITH due AS MATERIALIZED (
  SELECT d.event_id, d.handler, d.event_created_at
    FROM unnest(%(handlers)s::text[], %(limits)s::integer[]) AS h (name, room)
   CROSS JOIN LATERAL (
     SELECT r.event_id, r.handler, r.event_created_at
       FROM {schema}.delivery AS r
      WHERE r.handler = h.name AND r.state = 'retrying' AND r.due_at <= clock_timestamp()
         AND (%(suspects)s OR r.crashes + (r.lease IS NOT NULL AND (r.begun OR r.crashes = 0))::integer < %(suspect)s)
      ORDER BY r.due_at
      LIMIT h.room
        FOR UPDATE SKIP LOCKED
   ) AS d
), claimed AS (
  UPDATE {schema}.delivery AS d
     SET lease = gen_random_uuid(), due_at = clock_timestamp() + %(lease)s * interval '1 second',
         attempts = d.attempts + (d.lease IS NOT NULL AND d.begun)::integer,
         crashes = d.crashes + (d.lease IS NOT NULL AND (d.begun OR d.crashes = 0))::integer,
         failures = CASE WHEN d.lease IS NOT NULL AND d.begun
                         THEN {schema}.with_failure(d.failures, d.attempts + 1, 'the worker died')
                         WHEN d.lease IS NOT NULL AND d.crashes = 0
                         THEN {schema}.with_failure(d.failures, d.attempts + 1, 'the worker died, maybe before this run began')
                         ELSE d.failures END,
         begun = false, updated_at = clock_timestamp()
    FROM due
   WHERE d.event_id = due.event_id AND d.handler = due.handler AND d.event_created_at = due.event_created_at
  RETURNING d.event_id, d.handler, d.event_created_at, d.attempts, d.crashes, d.lease
)
SELECT c.event_id::text, c.handler, (extract(epoch FROM c.event_created_at) * 1000000)::bigint, c.attempts, c.crashes,
       c.lease::text, coalesce(nullif(e.name, '(copy)'), l.name), coalesce(e.key, l.key),
       coalesce(e.payload::text, l.payload::text),
       CASE WHEN e.id IS NULL THEN l.headers::text ELSE e.headers::text END
  FROM claimed AS c
  LEFT JOIN {schema}.event AS e ON e.id = c.event_id AND e.created_at = c.event_created_at
  LEFT JOIN {schema}.dead_letter AS l ON l.event_id = c.event_id AND l.handler = c.handler
