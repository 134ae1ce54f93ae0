-- Spans of several handlers, a row each. Materialized: else the snapshots would be parsed anew for every event.
MATERIALIZED (
  SELECT s.handler, s.name, s.before::pg_snapshot, s.done::pg_snapshot, s.done_seq, s.prior::pg_snapshot, s.upto::pg_snapshot,
         s.upto_seq
    FROM unnest(%(handlers)s::text[], %(names)s::text[], %(befores)s::text[], %(dones)s::text[], %(done_seqs)s::bigint[],
                %(priors)s::text[], %(uptos)s::text[], %(upto_seqs)s::bigint[])
         AS s(handler, name, before, done, done_seq, prior, upto, upto_seq)
)
