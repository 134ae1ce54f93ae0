-- How many dead letters nobody has put back yet, and the moment of asking. Index: dead_letter_died_at, or the primary key.
SELECT count(*), clock_timestamp()
  FROM {schema}.dead_letter AS l
 WHERE replayed_at IS NULL AND died_at <= clock_timestamp()
   AND {selection}
