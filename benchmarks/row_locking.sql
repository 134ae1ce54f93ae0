-- The table of the row-locking relay: our event's columns, a rising key, no index that it does not need.
CREATE SCHEMA row_locking;
CREATE TABLE row_locking.event (
  id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  event_id   uuid        NOT NULL DEFAULT uuidv7(),
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  name       text        NOT NULL,
  key        text,
  payload    json        NOT NULL,
  headers    json
);
