-- Of the grants that roles need, those they do not have. Partitions are left out: whoever may read the table may read
-- them through it. Catalog only. A table that is not there is the check of the schema's business.
SELECT n.role, n.privilege, n.kind, n.name
  FROM unnest(%(roles)s::text[], %(privileges)s::text[], %(kinds)s::text[], %(names)s::text[])
    AS n (role, privilege, kind, name)
 WHERE NOT CASE n.kind
       WHEN 'SCHEMA' THEN has_schema_privilege(n.role, to_regnamespace(n.name), n.privilege)
       WHEN 'SEQUENCE' THEN has_sequence_privilege(n.role, to_regclass(n.name), n.privilege)
       WHEN 'ALL TABLES IN SCHEMA' THEN
         (SELECT bool_and(has_table_privilege(n.role, c.oid, n.privilege)) FROM pg_class AS c
           WHERE c.relnamespace = to_regnamespace(n.name) AND c.relkind IN ('r', 'p') AND NOT c.relispartition)
       ELSE has_table_privilege(n.role, to_regclass(n.name), n.privilege) END
 ORDER BY n.role, n.name, n.privilege
