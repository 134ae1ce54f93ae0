-- Makes handlers known, or seen again, and returns the event name that each is registered for. Rows are locked in one order.
-- Who is known goes on where it is, whatever `start_at` says by now.
INSERT INTO {schema}.handler (name, event_name, start_at)
SELECT name, event_name, start_at
  FROM unnest(%(names)s::text[], %(event_names)s::text[], %(starts)s::timestamptz[]) AS h (name, event_name, start_at)
 ORDER BY name
ON CONFLICT (name) DO UPDATE SET last_seen = clock_timestamp()
RETURNING name, event_name
