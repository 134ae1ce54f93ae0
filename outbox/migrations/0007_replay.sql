-- Replays that have begun and not ended: an interrupted one goes on from its place when it is asked for again.
CREATE TABLE {schema}.replay (
  known_as      text        PRIMARY KEY,
  actor         text        NOT NULL,
  began_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
  since         timestamptz,
  until         timestamptz,
  asked         bigint      NOT NULL,
  count         bigint      NOT NULL DEFAULT 0,
  place_at      timestamptz,
  place_id      uuid,
  place_handler text
);
COMMENT ON COLUMN {schema}.replay.known_as IS 'a hash of what was asked for; no payload, no key';
COMMENT ON COLUMN {schema}.replay.place_id IS 'with place_at and place_handler: the last delivery that it has dealt with';
