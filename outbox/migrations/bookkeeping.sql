-- The schema, and the record of which migrations were applied to it and from which text. Safe to run again; asks for the
-- right to create in the database only when the schema is not there yet.
DO $$ BEGIN
  IF to_regnamespace('{schema}') IS NULL THEN
    CREATE SCHEMA {schema};
  END IF;
  IF to_regclass('{schema}.migration') IS NULL THEN
    CREATE TABLE {schema}.migration (
      version    integer     PRIMARY KEY,
      name       text        NOT NULL,
      checksum   text        NOT NULL,
      applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
    );
  END IF;
END $$;
