-- The handlers as retention and thinning see them: a few rows. An attached one needs the ticks from `done_to` on, a detached one
-- those from its feed's position.
SELECT name, last_seen, done_tick, done_seq,
       CASE WHEN attached THEN done_tick ELSE fed_tick END, CASE WHEN attached THEN done_seq ELSE fed_seq END
  FROM {schema}.handler
