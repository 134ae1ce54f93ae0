-- What came to its end since a moment, by handler and state, and how many attempts beyond the first that took.
SELECT handler, state, count(*), sum(greatest(attempts - 1, 0))
  FROM {schema}.delivery
 WHERE handler = ANY(%(handlers)s::text[]) AND state IN ('done', 'dead') AND updated_at >= %(since)s
 GROUP BY handler, state
