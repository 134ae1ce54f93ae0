-- All that the database knows about one event, as one JSON text, so that every driver gives the same. The tick is the first
-- whose snapshot sees the event: a search in halves over the ids, about forty probes of tick's primary key. Who has event
-- rows in an open transaction is asked only when there is no such event. CAST, because SQLAlchemy takes no parameter with
-- :: behind it. Index: primary keys of event, delivery (of each
-- partition), dead_letter, scheduled, tombstone; handlers are few.
WITH RECURSIVE found AS MATERIALIZED (
  SELECT id, name, key, created_at, seq, xid, headers->>'outbox-copy-of' AS copy_of FROM {schema}.event WHERE id = CAST(%(id)s AS uuid) ORDER BY created_at LIMIT 1
), search (low, high) AS (
  SELECT 0::bigint, t.id
    FROM found AS e
   CROSS JOIN LATERAL (SELECT id, snapshot FROM {schema}.tick ORDER BY id DESC LIMIT 1) AS t
   WHERE pg_visible_in_snapshot(e.xid, t.snapshot)
  UNION ALL
  SELECT CASE WHEN t.sees THEN s.low ELSE s.low + (s.high - s.low) / 2 END, CASE WHEN t.sees THEN t.id ELSE s.high END
    FROM search AS s
   CROSS JOIN found AS e
    LEFT JOIN LATERAL (SELECT id, pg_visible_in_snapshot(e.xid, snapshot) AS sees FROM {schema}.tick
                        WHERE id > s.low AND id <= s.low + (s.high - s.low) / 2
                        ORDER BY id DESC LIMIT 1) AS t ON true
   WHERE s.high - s.low > 1
), letter AS MATERIALIZED (
  SELECT * FROM {schema}.dead_letter WHERE event_id = CAST(%(id)s AS uuid)
), planned AS MATERIALIZED (
  SELECT * FROM {schema}.scheduled WHERE id = CAST(%(id)s AS uuid)
), purged AS MATERIALIZED (
  SELECT * FROM {schema}.tombstone WHERE event_id = CAST(%(id)s AS uuid)
), delivered AS MATERIALIZED (
  SELECT * FROM {schema}.delivery WHERE event_id = CAST(%(id)s AS uuid)
), named AS MATERIALIZED (
  -- A copy and a purged event have no name that a handler could have.
  SELECT coalesce((SELECT name FROM found WHERE name NOT IN ('(copy)', '(purged)')), (SELECT name FROM purged),
                  (SELECT name FROM letter LIMIT 1), (SELECT name FROM planned),
                  (SELECT h.event_name FROM {schema}.handler AS h JOIN delivered AS d ON d.handler = h.name LIMIT 1)) AS name,
         coalesce((SELECT name FROM found), (SELECT name FROM letter LIMIT 1), (SELECT name FROM planned)) AS served
)
SELECT json_build_object(
  'now', clock_timestamp(),
  'name', (SELECT name FROM named),
  'event', (SELECT json_build_object(
      'name', name, 'key', key, 'created_at', created_at, 'seq', seq, 'copy_of', copy_of,
      'own', coalesce(xid = pg_current_xact_id_if_assigned(), false),
      'committed_at', CASE WHEN current_setting('track_commit_timestamp') = 'on'
                           THEN pg_xact_commit_timestamp(xid::xid) END) FROM found),
  'tick', (SELECT json_build_object('id', id, 'created_at', created_at) FROM {schema}.tick
            WHERE id = (SELECT min(high) FROM search)),
  'relay', (SELECT json_build_object('tick', r.tick, 'seq', r.seq, 'paused', EXISTS (SELECT FROM {schema}.hold AS o WHERE o.what = 'relay'),
      'leads', EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1
                          AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                          AND (classid::bigint << 32 | objid::bigint) = %(lock)s)) FROM {schema}.relay AS r),
  'planned', (SELECT json_build_object('due_at', due_at, 'created_at', created_at, 'key', key) FROM planned),
  'handlers', (SELECT coalesce(json_agg(json_build_object(
      'name', h.name, 'attached', h.attached, 'paused', EXISTS (SELECT FROM {schema}.hold AS o WHERE (o.what, o.name) IN (('handler', h.name), ('event', h.event_name))),
      'done_tick', h.done_tick, 'done_seq', h.done_seq,
      'fed_tick', h.fed_tick, 'fed_seq', h.fed_seq, 'last_seen', h.last_seen,
      'workers', (SELECT count(*) FROM {schema}.worker AS w
                   WHERE h.name = ANY(w.handlers) AND w.seen_at > clock_timestamp() - %(alive)s * interval '1 second')
      ) ORDER BY h.name), '[]')
      FROM {schema}.handler AS h
     WHERE h.event_name = (SELECT served FROM named) OR h.name IN (SELECT handler FROM delivered)),
  'purged_at', (SELECT purged_at FROM purged),
  'deliveries', (SELECT coalesce(json_agg(json_build_object(
      'handler', handler, 'state', state, 'attempts', attempts, 'replays', replays, 'due_at', due_at,
      'leased', lease IS NOT NULL, 'error', error, 'failures', failures, 'result', result,
      'updated_at', updated_at) ORDER BY handler), '[]')
      FROM delivered),
  'letters', (SELECT coalesce(json_agg(json_build_object(
      'handler', handler, 'key', key, 'event_created_at', event_created_at, 'attempts', attempts, 'error', error,
      'died_at', died_at, 'replayed_at', replayed_at) ORDER BY handler), '[]') FROM letter),
  'writers', (SELECT coalesce(json_agg(json_build_object(
      'pid', w.pid, 'program', a.application_name, 'since', coalesce(a.xact_start, p.prepared), 'prepared', p.gid)), '[]')
      FROM (SELECT DISTINCT l.pid, l.virtualtransaction FROM pg_locks AS l
             WHERE l.mode = 'RowExclusiveLock' AND l.relation = '{schema}.event'::regclass
               AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
               AND l.pid IS DISTINCT FROM pg_backend_pid()
             LIMIT 10) AS w
      LEFT JOIN pg_stat_activity AS a ON a.pid = w.pid
      -- A prepared transaction has no session; which it is its lock on its own number tells.
      LEFT JOIN pg_locks AS x ON w.pid IS NULL AND x.pid IS NULL AND x.locktype = 'transactionid'
                              AND x.virtualtransaction = w.virtualtransaction
      LEFT JOIN pg_prepared_xacts AS p ON p.transaction = x.transactionid
     WHERE NOT EXISTS (SELECT FROM found))
)::text AS story
