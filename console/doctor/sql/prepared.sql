-- Prepared transactions of the whole server that nobody has ended for longer than `long` seconds, the oldest first, and
-- whether they hold events of this outbox. Their locks have no process, but their transaction's id behind '-1/'.
SELECT p.gid, p.database::text AS database, p.owner::text AS role, p.database = current_database() AS here,
       extract(epoch FROM clock_timestamp() - p.prepared)::float8 AS age,
       EXISTS (SELECT FROM pg_locks AS l
                WHERE l.virtualtransaction = '-1/' || p.transaction AND l.relation = to_regclass('{schema}.event')
                  AND p.database = current_database()) AS holds
  FROM pg_prepared_xacts AS p
 WHERE p.prepared < clock_timestamp() - %(long)s * interval '1 second'
 ORDER BY p.prepared
