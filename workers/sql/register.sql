-- Makes handlers known, or seen again, and returns the event name that each is registered for. Rows are locked in one order.
INSERT INTO {schema}.handler (name, event_name)
SELECT name, event_name
  FROM unnest(%(names)s::text[], %(event_names)s::text[]) AS h (name, event_name)
 ORDER BY name
ON CONFLICT (name) DO UPDATE SET last_seen = clock_timestamp()
RETURNING name, event_name
