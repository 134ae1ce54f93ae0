-- Blanks the audit rows that quote contents which are about to be erased; which they are. By the audit table's primary key;
-- contents by what selects them, each looked through for each quote until one is found.
UPDATE {schema}.audit AS a
   SET detail = (a.detail::jsonb || '{"filter": "(purged)", "edit": "(purged)"}')::json
 WHERE a.id IN (
         SELECT q.id FROM unnest(%(audits)s::bigint[], %(quotes)s::text[]) AS q (id, quote)
          WHERE EXISTS (SELECT FROM {schema}.{table}
                         WHERE strpos(lower(concat_ws(' ', {content})), lower(q.quote)) > 0 AND {selection}))
RETURNING a.id
