-- Whether no event of this range is left and none of its deliveries is to be retried: then nobody asks for their outcome.
-- The range's event partition is gone by then; what is looked at is the default one, which is empty or small.
SELECT NOT EXISTS (SELECT FROM {schema}.event WHERE created_at >= %(lower)s AND created_at < %(upper)s)
   AND NOT EXISTS (
         SELECT FROM {schema}.delivery
          WHERE state = 'retrying' AND event_created_at >= %(lower)s AND event_created_at < %(upper)s)
