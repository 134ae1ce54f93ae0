-- Where a handler wishes to begin, read once, when the relay admits it.
ALTER TABLE {schema}.handler ADD COLUMN start_at timestamptz;
COMMENT ON COLUMN {schema}.handler.start_at IS
  'begins with what was added from then on: -infinity is all that is retained, infinity its registration; null lets the relay decide';
