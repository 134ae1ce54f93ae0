-- The partitions of event and delivery with their ranges, and whether we may change them. Catalog only.
SELECT p.relname::text, c.relname::text, pg_get_expr(c.relpartbound, c.oid) = 'DEFAULT',
       substring(pg_get_expr(c.relpartbound, c.oid) FROM $$FROM \('([^']+)'\)$$)::timestamptz,
       substring(pg_get_expr(c.relpartbound, c.oid) FROM $$TO \('([^']+)'\)$$)::timestamptz
  FROM pg_inherits AS i
  JOIN pg_class AS p ON p.oid = i.inhparent
  JOIN pg_class AS c ON c.oid = i.inhrelid
 WHERE p.oid IN ('{schema}.event'::regclass, '{schema}.delivery'::regclass)
