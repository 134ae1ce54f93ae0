-- This worker is alive. Rows of workers that died without a word go after a day. By primary key; the table is small.
WITH gone AS (
  DELETE FROM {schema}.worker WHERE seen_at < clock_timestamp() - interval '1 day'
)
INSERT INTO {schema}.worker (name, handlers) VALUES (%(name)s, %(handlers)s::text[])
ON CONFLICT (name) DO UPDATE SET seen_at = clock_timestamp(), handlers = excluded.handlers
