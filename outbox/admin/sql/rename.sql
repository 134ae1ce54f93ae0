-- A handler under another name: its outcomes and dead letters are the new one's, which is fed from where all was done; what
-- has an outcome is left out there. Reads all retained deliveries, once: there is no index by handler, and none is wanted.
WITH delivered AS (
  UPDATE {schema}.delivery SET handler = %(new)s WHERE handler = %(name)s
), died AS (
  UPDATE {schema}.dead_letter SET handler = %(new)s WHERE handler = %(name)s
), held AS (
  UPDATE {schema}.hold SET name = %(new)s WHERE what = 'handler' AND name = %(name)s
)
UPDATE {schema}.handler
   SET name = %(new)s, attached = false, fed_tick = done_tick, fed_seq = done_seq
 WHERE name = %(name)s
