-- The business that writers and handlers do. `effect` has no unique key, so that an effect that is applied twice shows.
CREATE TABLE business (id uuid PRIMARY KEY, tx text NOT NULL, key text, n bigint);
CREATE TABLE counter (key text PRIMARY KEY, n bigint NOT NULL);
INSERT INTO counter (key, n) SELECT 'key-' || k, 0 FROM generate_series(0, 11) AS k;
CREATE TABLE effect (
  place bigint GENERATED ALWAYS AS IDENTITY,
  handler text NOT NULL,
  event_id uuid NOT NULL,
  sha text NOT NULL,
  follow uuid,
  at timestamptz NOT NULL DEFAULT clock_timestamp()
);
