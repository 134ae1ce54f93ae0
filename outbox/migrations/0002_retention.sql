-- What retention has taken away: redelivered events that are older cannot be told from new ones by their deliveries.
ALTER TABLE {schema}.relay ADD COLUMN retained_from timestamptz;
COMMENT ON COLUMN {schema}.relay.retained_from IS 'deliveries of events that were added before may be gone with their partition';
