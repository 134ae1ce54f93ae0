-- A handler that is no more: its row, what holds it back, and its retries, which are cancelled; with `letters` also its dead
-- letters. Index: primary keys, delivery_due, dead_letter_handler.
WITH cancelled AS (
  UPDATE {schema}.delivery
     SET state = 'cancelled', due_at = NULL, lease = NULL, error = 'its handler was forgotten', updated_at = clock_timestamp()
   WHERE handler = %(name)s AND state = 'retrying'
), resumed AS (
  DELETE FROM {schema}.hold WHERE what = 'handler' AND name = %(name)s
), discarded AS (
  DELETE FROM {schema}.dead_letter WHERE %(letters)s AND handler = %(name)s
)
DELETE FROM {schema}.handler WHERE name = %(name)s
