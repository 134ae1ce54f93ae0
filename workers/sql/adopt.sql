-- Entries that a dead worker left and that are no longer in their stream: found by seq, the second half of their id. There
-- is no index on seq; this reads the retained events of one name, and happens only when somebody trimmed by hand.
INSERT INTO {schema}.delivery (event_id, handler, event_created_at, state, attempts, due_at, error)
SELECT e.id, %(handler)s, e.created_at, 'retrying', 0, clock_timestamp(), %(error)s
  FROM {schema}.event AS e
 WHERE e.seq = ANY (%(seqs)s) AND e.name = %(event_name)s
ON CONFLICT DO NOTHING
