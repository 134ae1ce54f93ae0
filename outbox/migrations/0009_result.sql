-- What a handler returned, for whoever asks how it went. Nothing is rewritten for it.
ALTER TABLE {schema}.delivery ADD COLUMN result json;
COMMENT ON COLUMN {schema}.delivery.result IS 'what the handler returned when it was done, if anything: at most 8 KiB';
