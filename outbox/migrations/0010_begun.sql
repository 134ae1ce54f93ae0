-- Whether a retry whose worker died once has begun to run, or only waits in a worker's hands. Nothing is rewritten for it.
ALTER TABLE {schema}.delivery ADD COLUMN begun boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN {schema}.delivery.begun IS 'its run began under this lease; kept only after a first crash';
