-- The whole data model. `{schema}` is replaced by the configured schema name; the file runs in one transaction.

-- What was said -------------------------------------------------------------------------------------------------

CREATE SEQUENCE {schema}.event_seq;

-- A flag that outlives snapshots: its value is "the relay sleeps until", in epoch seconds. Unlogged, so that setting it
-- writes no WAL and burns no transaction id; a crash resets it to "awake", which is the safe side for writers, and the
-- relay sets it anew when it reconnects.
CREATE UNLOGGED SEQUENCE {schema}.asleep;

-- A UUIDv7 (RFC 9562, section 5.7) for rows that are written by plain SQL.
CREATE FUNCTION {schema}.uuidv7() RETURNS uuid LANGUAGE sql VOLATILE PARALLEL SAFE
BEGIN ATOMIC
  SELECT encode(
    substring(int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3)
      || set_byte(substring(r FROM 7), 0, (get_byte(r, 6) & 15) | 112), 'hex')::uuid
  FROM (SELECT uuid_send(gen_random_uuid()) AS r) AS random;
END;

CREATE TABLE {schema}.event (
  id         uuid        NOT NULL DEFAULT {schema}.uuidv7(),
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  seq        bigint      NOT NULL DEFAULT nextval('{schema}.event_seq'),
  xid        xid8        NOT NULL DEFAULT pg_current_xact_id(),
  name       text        NOT NULL CHECK (name <> '' AND length(name) <= 128),
  key        text,
  payload    json        NOT NULL,
  headers    json,
  PRIMARY KEY (id, created_at)
) PARTITION BY RANGE (created_at);

CREATE INDEX event_xid ON {schema}.event (xid);
CREATE TABLE {schema}.event_default PARTITION OF {schema}.event DEFAULT;

-- Wakes the relay, and only while it sleeps: a NOTIFY takes a lock that serialises all commits of the cluster.
CREATE FUNCTION {schema}.wake_relay() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF coalesce(pg_sequence_last_value('{schema}.asleep'::regclass), 0) > extract(epoch FROM clock_timestamp()) THEN
    NOTIFY {schema};
  END IF;
  RETURN NULL;
END $$;

CREATE TRIGGER wake_relay AFTER INSERT ON {schema}.event FOR EACH STATEMENT EXECUTE FUNCTION {schema}.wake_relay();

-- What was published --------------------------------------------------------------------------------------------

CREATE TABLE {schema}.tick (
  id         bigint      PRIMARY KEY,
  snapshot   pg_snapshot NOT NULL,
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  count      bigint
);
COMMENT ON COLUMN {schema}.tick.count IS 'events in the batch; null until it is published';

CREATE TABLE {schema}.relay (
  id                smallint    PRIMARY KEY DEFAULT 1 CHECK (id = 1),
  tick              bigint      NOT NULL,
  seq               bigint      NOT NULL,
  system_identifier text        NOT NULL,
  leader            text,
  heartbeat         timestamptz
) WITH (fillfactor = 20);

CREATE TABLE {schema}.stream (
  name text   PRIMARY KEY,
  tick bigint NOT NULL,
  seq  bigint NOT NULL
) WITH (fillfactor = 50);

-- Who listens, and what came of it --------------------------------------------------------------------------------

CREATE TABLE {schema}.handler (
  name          text        PRIMARY KEY CHECK (name <> '' AND length(name) <= 128),
  event_name    text        NOT NULL,
  attached      boolean     NOT NULL DEFAULT false,
  done_tick     bigint,
  done_seq      bigint,
  fed_tick      bigint,
  fed_seq       bigint,
  paused        boolean     NOT NULL DEFAULT false,
  registered_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  last_seen     timestamptz NOT NULL DEFAULT clock_timestamp(),
  CHECK ((done_tick IS NULL) = (done_seq IS NULL)),
  CHECK ((fed_tick IS NULL) = (fed_seq IS NULL))
) WITH (fillfactor = 50);
CREATE INDEX handler_event_name ON {schema}.handler (event_name);
COMMENT ON COLUMN {schema}.handler.done_tick IS
  'with done_seq: below and at this position every event has an outcome here; null until the relay admits the handler';
COMMENT ON COLUMN {schema}.handler.fed_tick IS
  'with fed_seq: position of the catch-up feed; null when the handler is attached or not admitted yet';

CREATE TABLE {schema}.delivery (
  event_id         uuid        NOT NULL,
  handler          text        NOT NULL,
  event_created_at timestamptz NOT NULL,
  state            text        NOT NULL CHECK (state IN ('done', 'retrying', 'dead')),
  attempts         integer     NOT NULL,
  crashes          integer     NOT NULL DEFAULT 0,
  replays          integer     NOT NULL DEFAULT 0,
  due_at           timestamptz CHECK ((due_at IS NOT NULL) = (state = 'retrying')),
  lease            uuid        CHECK (lease IS NULL OR state = 'retrying'),
  error            text,
  updated_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (event_id, handler, event_created_at)
) PARTITION BY RANGE (event_created_at);
CREATE INDEX delivery_due ON {schema}.delivery (handler, due_at) WHERE state = 'retrying';
CREATE TABLE {schema}.delivery_default PARTITION OF {schema}.delivery DEFAULT;
COMMENT ON COLUMN {schema}.delivery.due_at IS 'when to try again; while a worker holds the lease, when that ends';

CREATE TABLE {schema}.dead_letter (
  event_id         uuid        NOT NULL,
  handler          text        NOT NULL,
  event_created_at timestamptz NOT NULL,
  name             text        NOT NULL,
  key              text,
  payload          json        NOT NULL,
  headers          json,
  attempts         integer     NOT NULL,
  error            text        NOT NULL,
  died_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
  replayed_at      timestamptz,
  PRIMARY KEY (event_id, handler)
);
CREATE INDEX dead_letter_died_at ON {schema}.dead_letter (died_at);

-- What is not due yet ---------------------------------------------------------------------------------------------

CREATE TABLE {schema}.scheduled (
  id         uuid        PRIMARY KEY DEFAULT {schema}.uuidv7(),
  due_at     timestamptz NOT NULL,
  name       text        NOT NULL CHECK (name <> '' AND length(name) <= 128),
  key        text,
  payload    json        NOT NULL,
  headers    json,
  created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX scheduled_due_at ON {schema}.scheduled (due_at);

CREATE TABLE {schema}.schedule (
  name       text        PRIMARY KEY,
  cron       text        NOT NULL,
  timezone   text        NOT NULL DEFAULT 'UTC',
  event_name text        NOT NULL CHECK (event_name <> '' AND length(event_name) <= 128),
  payload    json        NOT NULL,
  headers    json,
  next_at    timestamptz NOT NULL,
  paused     boolean     NOT NULL DEFAULT false
);

-- Who changed something by hand, and why ----------------------------------------------------------------------------

CREATE TABLE {schema}.audit (
  id     bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  at     timestamptz NOT NULL DEFAULT clock_timestamp(),
  actor  text        NOT NULL,
  action text        NOT NULL,
  reason text,
  detail json        NOT NULL
);

-- Makes the day's partitions of event and delivery, for the UTC days from `first` to `last`. Each is made beside the
-- table and then attached; rows of that day that already went to DEFAULT move along, with their seq and xid.
CREATE FUNCTION {schema}.make_partitions(first date, last date) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
  parent text; part text; column_name text; day date; made integer := 0; lower timestamptz; upper timestamptz;
BEGIN
  FOR day IN SELECT generate_series(first, last, interval '1 day')::date LOOP
    FOREACH parent IN ARRAY ARRAY['event', 'delivery'] LOOP
      part := parent || '_p' || to_char(day, 'YYYYMMDD');
      CONTINUE WHEN to_regclass(format('%I.%I', '{schema}', part)) IS NOT NULL;
      column_name := CASE parent WHEN 'event' THEN 'created_at' ELSE 'event_created_at' END;
      lower := day::timestamp AT TIME ZONE 'UTC';
      upper := (day + 1)::timestamp AT TIME ZONE 'UTC';
      EXECUTE format('CREATE TABLE %1$I.%2$I (LIKE %1$I.%3$I INCLUDING ALL)', '{schema}', part, parent);
      EXECUTE format(
        'WITH moved AS (DELETE FROM %1$I.%2$I WHERE %3$I >= %4$L AND %3$I < %5$L RETURNING *) '
        'INSERT INTO %1$I.%6$I SELECT * FROM moved', '{schema}', parent || '_default', column_name, lower, upper, part);
      EXECUTE format('ALTER TABLE %1$I.%2$I ATTACH PARTITION %1$I.%3$I FOR VALUES FROM (%4$L) TO (%5$L)',
        '{schema}', parent, part, lower, upper);
      made := made + 1;
    END LOOP;
  END LOOP;
  RETURN made;
END $$;

-- The log begins here: no event is older than this tick's snapshot.
INSERT INTO {schema}.tick (id, snapshot, count)
  VALUES (floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint, pg_current_snapshot(), 0);
INSERT INTO {schema}.relay (tick, seq, system_identifier)
  SELECT t.id, 0, c.system_identifier::text FROM {schema}.tick AS t, pg_control_system() AS c;
SELECT {schema}.make_partitions((now() AT TIME ZONE 'UTC')::date, (now() AT TIME ZONE 'UTC')::date + 7);
