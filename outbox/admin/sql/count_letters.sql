-- How many dead letters nobody has put back yet, and the moment of asking. Index: dead_letter_died_at, or the primary key.
SELECT count(*), clock_timestamp()
  FROM {schema}.dead_letter
 WHERE replayed_at IS NULL
   AND (%(ids)s::uuid[] IS NULL OR event_id = ANY(%(ids)s::uuid[]))
   AND (%(handler)s::text IS NULL OR handler = %(handler)s)
   AND (%(event)s::text IS NULL OR name = %(event)s)
   AND (%(since)s::timestamptz IS NULL OR died_at >= %(since)s)
   AND (%(until)s::timestamptz IS NULL OR died_at < %(until)s)
