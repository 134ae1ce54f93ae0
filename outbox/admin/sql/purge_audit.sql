-- What was selected by the same key or field, or by the ids of what was purged within a day, when something else was changed,
-- or was edited to be selected now. Reads all audit rows.
UPDATE {schema}.audit
   SET detail = (detail::jsonb || '{"filter": "(purged)", "edit": "(purged)"}')::json
 WHERE detail -> 'filter' ->> 'key' = %(key)s
    OR detail::jsonb -> 'filter' -> 'payload' ?| %(fields)s::text[]
    OR detail::jsonb -> 'edit' ?| %(fields)s::text[]
    OR detail::jsonb -> 'filter' -> 'ids' ?| ARRAY(
         SELECT event_id::text FROM {schema}.tombstone WHERE purged_at > clock_timestamp() - interval '1 day')
