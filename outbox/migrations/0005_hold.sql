-- What is held back by hand, and deliveries that are not to run: both until somebody says otherwise.
CREATE TABLE {schema}.hold (
  what   text        NOT NULL CHECK (what IN ('handler', 'event', 'relay')),
  name   text        NOT NULL,
  since  timestamptz NOT NULL DEFAULT clock_timestamp(),
  actor  text        NOT NULL,
  reason text,
  PRIMARY KEY (what, name)
);
COMMENT ON COLUMN {schema}.hold.name IS 'of the handler, or of the event: then all of its handlers rest; empty for the relay';
ALTER TABLE {schema}.handler DROP COLUMN paused;

ALTER TABLE {schema}.delivery DROP CONSTRAINT delivery_state_check;
ALTER TABLE {schema}.delivery ADD CONSTRAINT delivery_state_check
  CHECK (state IN ('done', 'retrying', 'dead', 'cancelled'));
