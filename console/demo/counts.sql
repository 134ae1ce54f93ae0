-- The figures of the live view, at one moment. It counts whole tables, which is right for the few thousand rows of a
-- demo; `outbox status` is for the rest.
SELECT
  (SELECT count(*) FROM {schema}.event) AS committed,
  outcome.done,
  outcome.retrying,
  outcome.dead,
  (SELECT count(*) FROM {schema}.event AS e JOIN {schema}.handler AS h ON h.event_name = e.name)
    - outcome.done - outcome.dead AS lag
FROM (
  SELECT count(*) FILTER (WHERE state = 'done') AS done,
         count(*) FILTER (WHERE state = 'retrying') AS retrying,
         count(*) FILTER (WHERE state = 'dead') AS dead
  FROM {schema}.delivery
) AS outcome
