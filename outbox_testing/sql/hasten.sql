-- Makes every retry that waits due now. One whose run goes on has a lease and is left alone.
UPDATE {schema}.delivery
   SET due_at = clock_timestamp()
 WHERE handler = ANY(%(handlers)s::text[]) AND state = 'retrying' AND lease IS NULL AND due_at > clock_timestamp()
