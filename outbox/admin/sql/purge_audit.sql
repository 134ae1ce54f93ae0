-- What was selected by the same key, field or event when something else was changed. Reads all audit rows.
UPDATE {schema}.audit
   SET detail = (detail::jsonb || '{"filter": "(purged)", "edit": "(purged)"}')::json
 WHERE detail -> 'filter' ->> 'key' = %(key)s
    OR detail::jsonb -> 'filter' -> 'payload' ?| %(fields)s::text[]
    OR detail::jsonb -> 'filter' -> 'ids' ?| %(ids)s::text[]
