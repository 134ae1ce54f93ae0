-- Who is at work and what happened to a delivery so far, for the person who looks.

-- A row for each worker process while it lives. Redis knows consumers only by what they read, and an idle one reads nothing.
CREATE TABLE {schema}.worker (
  name       text        PRIMARY KEY,
  handlers   text[]      NOT NULL,
  started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  seen_at    timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50);

ALTER TABLE {schema}.relay ADD COLUMN backend_pid integer;
COMMENT ON COLUMN {schema}.relay.backend_pid IS
  'the session that the leader takes for its own: where a pooler stands between, another one holds the lock';

-- A delivery that worked at once has none, so the plain way writes nothing more.
ALTER TABLE {schema}.delivery ADD COLUMN failures jsonb;
COMMENT ON COLUMN {schema}.delivery.failures IS 'the last ten attempts that failed: [{"attempt": 1, "at": time, "error": text}]';

-- `failures` with one more; as they were if there is no error. Errors are cut: the last one stands in full beside them.
CREATE FUNCTION {schema}.with_failure(failures jsonb, attempt integer, error text) RETURNS jsonb
LANGUAGE sql VOLATILE PARALLEL SAFE
BEGIN ATOMIC
  SELECT CASE WHEN error IS NULL THEN failures
              ELSE coalesce(CASE WHEN jsonb_array_length(failures) >= 10 THEN failures - 0 ELSE failures END, '[]')
                   || jsonb_build_object('attempt', attempt, 'at', clock_timestamp(), 'error', left(error, 500)) END;
END;

-- Letters that were put back stay, and no listing asks for them.
DROP INDEX {schema}.dead_letter_died_at;
CREATE INDEX dead_letter_died_at ON {schema}.dead_letter (died_at) WHERE replayed_at IS NULL;
CREATE INDEX dead_letter_handler ON {schema}.dead_letter (handler, died_at) WHERE replayed_at IS NULL;
