-- Whether a retry of an event of this range is still to come. Index: delivery_due, which holds nothing else.
SELECT EXISTS (
  SELECT FROM {schema}.delivery
   WHERE state = 'retrying' AND event_created_at >= %(lower)s AND event_created_at < %(upper)s)
