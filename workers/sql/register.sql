-- Makes a handler known, or seen again, and returns the event name it is registered for.
INSERT INTO {schema}.handler (name, event_name)
VALUES (%(name)s, %(event_name)s)
ON CONFLICT (name) DO UPDATE SET last_seen = clock_timestamp()
RETURNING event_name
