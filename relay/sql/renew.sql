-- The unfinished events become this transaction's, as if it had added them; in their order, with new seqs if there are any
-- doubts about the old ones. Index: event's primary key, or a scan when they are many.
UPDATE {schema}.event AS e
   SET xid = pg_current_xact_id(), seq = n.seq
  FROM (SELECT id, created_at,
               CASE WHEN %(renumber)s THEN nextval('{schema}.event_seq'::regclass) ELSE seq END AS seq
          FROM (SELECT DISTINCT id, created_at, seq FROM unfinished WHERE NOT passed ORDER BY created_at, seq) AS u) AS n
 WHERE e.id = n.id AND e.created_at = n.created_at
