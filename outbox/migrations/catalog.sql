-- What the schema consists of, one row per thing: its kind and name, and its definition as text. Day partitions come and
-- go and are left out with all that hangs on them. NOT NULL is read from the columns: as constraints they exist since
-- PostgreSQL 18 only. Catalog indexes only; a few hundred rows.
WITH relation AS (
  SELECT c.* FROM pg_class AS c
  WHERE c.relnamespace = to_regnamespace(%(schema)s) AND c.relname !~ '^(event|delivery)_p[0-9]{8}$'
)
SELECT 'table ' || relname AS thing,
       concat_ws(' ', CASE relpersistence WHEN 'u' THEN 'unlogged' WHEN 't' THEN 'temporary' END,
                 'partition by ' || pg_get_partkeydef(oid), 'partition ' || pg_get_expr(relpartbound, oid),
                 'with ' || reloptions::text, CASE WHEN relrowsecurity THEN 'row security' END) AS definition
  FROM relation WHERE relkind IN ('r', 'p')
UNION ALL
SELECT 'view ' || relname, pg_get_viewdef(oid) FROM relation WHERE relkind IN ('v', 'm')
UNION ALL
SELECT 'sequence ' || r.relname,
       concat_ws(' ', CASE r.relpersistence WHEN 'u' THEN 'unlogged' END, format_type(s.seqtypid, NULL),
                 'start', s.seqstart, 'increment', s.seqincrement, 'min', s.seqmin, 'max', s.seqmax,
                 CASE WHEN s.seqcycle THEN 'cycle' END)
  FROM relation AS r JOIN pg_sequence AS s ON s.seqrelid = r.oid
UNION ALL
SELECT 'column ' || r.relname || '.' || a.attname,
       concat_ws(' ', format_type(a.atttypid, a.atttypmod),
                 CASE WHEN a.attcollation <> t.typcollation THEN 'collate ' || a.attcollation::regcollation END,
                 CASE WHEN a.attnotnull THEN 'not null' END,
                 CASE a.attidentity WHEN 'a' THEN 'generated always as identity' WHEN 'd' THEN 'identity' END,
                 'default ' || pg_get_expr(d.adbin, d.adrelid))
  FROM relation AS r
  JOIN pg_attribute AS a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
  JOIN pg_type AS t ON t.oid = a.atttypid
  LEFT JOIN pg_attrdef AS d ON d.adrelid = r.oid AND d.adnum = a.attnum
 WHERE r.relkind IN ('r', 'p')
UNION ALL
SELECT 'constraint ' || r.relname || '.' || c.conname,
       concat_ws(' ', pg_get_constraintdef(c.oid), CASE WHEN NOT c.convalidated THEN 'not valid' END)
  FROM relation AS r JOIN pg_constraint AS c ON c.conrelid = r.oid AND c.contype <> 'n'
UNION ALL
SELECT 'index ' || i.relname, concat_ws(' ', pg_get_indexdef(i.oid), CASE WHEN NOT x.indisvalid THEN 'invalid' END)
  FROM relation AS r JOIN pg_index AS x ON x.indrelid = r.oid JOIN pg_class AS i ON i.oid = x.indexrelid
UNION ALL
SELECT 'trigger ' || r.relname || '.' || t.tgname,
       concat_ws(' ', pg_get_triggerdef(t.oid), CASE t.tgenabled WHEN 'D' THEN 'disabled' WHEN 'R' THEN 'replica' WHEN 'A' THEN 'always' END)
  FROM relation AS r JOIN pg_trigger AS t ON t.tgrelid = r.oid AND NOT t.tgisinternal
UNION ALL
SELECT 'function ' || p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')', pg_get_functiondef(p.oid)
  FROM pg_proc AS p WHERE p.pronamespace = to_regnamespace(%(schema)s) AND p.prokind IN ('f', 'p')
UNION ALL
SELECT 'rule ' || r.relname || '.' || w.rulename, pg_get_ruledef(w.oid)
  FROM relation AS r JOIN pg_rewrite AS w ON w.ev_class = r.oid AND w.rulename <> '_RETURN'
UNION ALL
SELECT 'policy ' || r.relname || '.' || p.polname,
       concat_ws(' ', p.polcmd, pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid))
  FROM relation AS r JOIN pg_policy AS p ON p.polrelid = r.oid
UNION ALL
SELECT 'type ' || t.typname, t.typtype::text
  FROM pg_type AS t WHERE t.typnamespace = to_regnamespace(%(schema)s) AND t.typtype IN ('d', 'e', 'r')
