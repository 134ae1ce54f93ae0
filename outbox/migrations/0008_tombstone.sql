-- Events whose content was erased by hand. Kept for ever: small, without content, and what a restored backup must be purged
-- of again.
CREATE TABLE {schema}.tombstone (
  event_id  uuid        PRIMARY KEY,
  name      text        NOT NULL,
  purged_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX tombstone_purged_at ON {schema}.tombstone (purged_at);
