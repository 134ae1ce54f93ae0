-- Replays stand among the failed attempts, so that what came before them is still told.
COMMENT ON COLUMN {schema}.delivery.failures IS
  'the last ten attempts that failed: [{"attempt": 1, "at": time, "error": text}]; attempt 0 is a replay, and its text says who, why and what was before';
COMMENT ON COLUMN {schema}.replay.known_as IS
  'a hash of what was asked for; no payload, no key. The row total has in count how many deliveries were ever put back';
