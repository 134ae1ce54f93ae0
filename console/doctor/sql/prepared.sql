-- Prepared transactions of the whole server that nobody has ended for longer than `long` seconds, the oldest first, and
-- whether they hold events of this outbox. Their locks have no process; the lock on the transaction's own id says which
-- are of one transaction.
SELECT p.gid, p.database::text AS database, p.owner::text AS role, p.database = current_database() AS here,
       extract(epoch FROM clock_timestamp() - p.prepared)::float8 AS age,
       EXISTS (SELECT FROM pg_locks AS own
                 JOIN pg_locks AS l ON l.virtualtransaction = own.virtualtransaction AND l.pid IS NULL
                WHERE own.transactionid = p.transaction AND own.mode = 'ExclusiveLock' AND own.pid IS NULL
                  AND l.relation = to_regclass('{schema}.event') AND p.database = current_database()) AS holds
  FROM pg_prepared_xacts AS p
 WHERE p.prepared < clock_timestamp() - %(long)s * interval '1 second'
 ORDER BY p.prepared
