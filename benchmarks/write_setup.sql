-- The business table, and the trigger most outboxes have: it notifies in every transaction. It is enabled for its side only.
CREATE TABLE purchase (
  id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  customer   integer     NOT NULL,
  total      integer     NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now()
);
CREATE FUNCTION notify_always() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  NOTIFY outbox;
  RETURN NULL;
END $$;
CREATE TRIGGER notify_always AFTER INSERT ON outbox.event FOR EACH STATEMENT EXECUTE FUNCTION notify_always();
ALTER TABLE outbox.event DISABLE TRIGGER notify_always;
