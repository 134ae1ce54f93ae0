-- Where an attempt that failed for good was when it failed, for whoever reads the letter.
ALTER TABLE {schema}.dead_letter ADD COLUMN traceback text;
COMMENT ON COLUMN {schema}.dead_letter.traceback IS
  'the last error with its causes and their innermost frames; null when no run of the handler raised one';
