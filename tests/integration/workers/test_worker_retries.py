"""Failures: retries driven from PostgreSQL, dead letters, timeouts, leases of retries."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

import workers
from outbox.names import catch_up_key, stream_key
from workers.queries import sql

pytestmark = pytest.mark.oldest

FAST = workers.Backoff(initial=0.01, jitter=0)


def test_a_failed_attempt_is_recorded_acknowledged_and_tried_again(outbox: Any, work: Any, until: Any) -> None:
    app, attempts = workers.App(), []

    @app.handler("e", backoff=workers.Backoff(initial=0.3, jitter=0, base=1))
    async def h(n: int, context: workers.Context, event: workers.Event) -> None:
        attempts.append((n, context.attempt, event.payload))
        if context.attempt < 3:
            raise RuntimeError("not yet")

    outbox.attach("h", "e")
    outbox.publish("e", {"n": 1})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("retrying") == 1 and outbox.pending("e", "h") == 0)
        assert outbox.one("SELECT attempts, lease, error FROM outbox.delivery")[:2] == (1, None)
        await until(lambda: outbox.count("done") == 1)

    work(app, scenario)
    assert attempts == [(1, n, {"n": 1}) for n in (1, 2, 3)]
    assert outbox.one("SELECT attempts, crashes, due_at, lease, error FROM outbox.delivery") == (3, 0, None, None, None)


def test_after_the_last_attempt_there_is_a_dead_letter_with_the_whole_event(outbox: Any, work: Any, until: Any) -> None:
    app = workers.App()

    @app.handler("e", max_attempts=3, backoff=FAST)
    async def h(n: int) -> None:
        raise RuntimeError(f"never {n}")

    outbox.attach("h", "e")
    outbox.sql.execute(
        "INSERT INTO outbox.event (name, key, payload, headers) VALUES ('e', 'k', '{\"n\":  1}', '{\"trace\": \"x\"}')"
    )
    event = outbox.one(
        "SELECT id::text, seq, (extract(epoch FROM created_at) * 1000000)::bigint, payload::text FROM outbox.event"
    )
    outbox.push("e", [event])

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("dead") == 1)

    work(app, scenario)
    row = outbox.one(
        "SELECT name, key, payload::text, headers::text, attempts, error, replayed_at FROM outbox.dead_letter"
    )
    assert row[:5] == ("e", "k", '{"n":  1}', '{"trace": "x"}', 3)
    assert row[5].startswith("RuntimeError: never 1 (at test_worker_retries.py")
    assert row[6] is None
    assert outbox.one("SELECT attempts, due_at, lease FROM outbox.delivery") == (3, None, None)


def test_a_first_attempt_may_be_the_last(outbox: Any, work: Any, until: Any) -> None:
    app = workers.App()

    @app.handler("e")
    async def h() -> None:
        raise workers.Reject("no such user")

    outbox.attach("h", "e")
    outbox.publish("e", {})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("dead") == 1 and outbox.pending("e", "h") == 0)

    work(app, scenario)
    assert outbox.one("SELECT error, attempts FROM outbox.dead_letter") == ("rejected: no such user", 1)


def test_a_payload_that_does_not_fit_is_retried_and_dies_with_the_field_in_its_error(
    outbox: Any, work: Any, until: Any
) -> None:
    app = workers.App()

    @app.handler("e", max_attempts=2, backoff=FAST)
    async def h(user_id: int) -> None: ...

    outbox.attach("h", "e")
    outbox.publish("e", {"user": 1})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("dead") == 1)

    work(app, scenario)
    error, attempts = outbox.one("SELECT error, attempts FROM outbox.dead_letter")
    assert "field 'user_id' is missing" in error
    assert attempts == 2


def test_a_snooze_costs_no_attempt(outbox: Any, work: Any, until: Any) -> None:
    app, runs = workers.App(), []

    @app.handler("e", max_attempts=2)
    async def h(context: workers.Context) -> None:
        runs.append(context.attempt)
        if len(runs) < 5:
            raise workers.Snooze(0.01)

    outbox.attach("h", "e")
    outbox.publish("e", {})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 1)

    work(app, scenario)
    assert runs == [1] * 5
    assert outbox.one("SELECT attempts FROM outbox.delivery") == 1


def test_retry_later_chooses_when(outbox: Any, work: Any, until: Any) -> None:
    app = workers.App()

    @app.handler("e")
    async def h() -> None:
        raise workers.RetryLater(500)

    outbox.attach("h", "e")
    outbox.publish("e", {})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("retrying") == 1)

    work(app, scenario)
    assert 490 < outbox.one("SELECT extract(epoch FROM due_at - now())::float8 FROM outbox.delivery") <= 500


def test_a_replayed_dead_letter_is_settled_by_its_success(outbox: Any, work: Any, until: Any) -> None:
    app = workers.App()
    fixed = False

    @app.handler("e", max_attempts=1)
    async def h(n: int) -> None:
        if not fixed:
            raise RuntimeError

    outbox.attach("h", "e")
    outbox.publish("e", {"n": 1})

    async def scenario(worker: workers.Worker) -> None:
        nonlocal fixed
        await until(lambda: outbox.count("dead") == 1)
        fixed = True
        outbox.sql.execute("UPDATE outbox.delivery SET state = 'retrying', due_at = now(), attempts = 0")
        await until(lambda: outbox.count("done") == 1)

    work(app, scenario)
    assert outbox.one("SELECT count(*) FROM outbox.dead_letter") == 0


def test_a_retry_whose_event_is_gone_runs_from_the_dead_letters_copy(outbox: Any, work: Any, until: Any) -> None:
    app, seen = workers.App(), []

    @app.handler("e")
    async def h(n: int, event: workers.Event) -> None:
        seen.append((n, event.key, dict(event.headers)))

    outbox.attach("h", "e")
    outbox.sql.execute(
        "WITH l AS (INSERT INTO outbox.dead_letter (event_id, handler, event_created_at, name, key, payload, headers,"
        " attempts, error) VALUES (gen_random_uuid(), 'h', now(), 'e', 'k', '{\"n\": 4}', '{\"a\": \"b\"}', 1, '?')"
        " RETURNING *) INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts, due_at)"
        " SELECT event_id, handler, event_created_at, 'retrying', 0, now() FROM l"
    )

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 1)

    work(app, scenario)
    assert seen == [(4, "k", {"a": "b"})]


def test_a_retry_whose_event_is_nowhere_dies_visibly(outbox: Any, work: Any, until: Any) -> None:
    app = workers.App()

    @app.handler("e")
    async def h() -> None: ...

    outbox.attach("h", "e")
    outbox.sql.execute(
        "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts, due_at)"
        " VALUES (gen_random_uuid(), 'h', now(), 'retrying', 1, now())"
    )

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("dead") == 1)

    work(app, scenario)
    assert "the event is gone" in outbox.one("SELECT error FROM outbox.dead_letter")


def test_a_delivery_whose_worker_died_three_times_is_dead(outbox: Any, work: Any, until: Any) -> None:
    app, runs = workers.App(), []

    @app.handler("e")
    async def h(n: int, waited: bool = False) -> None:
        runs.append(n)

    outbox.attach("h", "e")
    outbox.write("e", {"n": 2}, {"n": 3}, {"n": 3, "waited": True})
    outbox.sql.execute(
        "INSERT INTO outbox.delivery"
        " (event_id, handler, event_created_at, state, attempts, crashes, due_at, lease, begun)"
        " SELECT id, 'h', created_at, 'retrying', 0, (payload->>'n')::int - 1, now(), gen_random_uuid(),"
        "        payload->>'waited' IS NULL"
        " FROM outbox.event"
    )

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("dead") == 1 and outbox.count("done") == 2)

    work(app, scenario)
    assert sorted(runs) == [2, 3]
    assert outbox.sql.execute("SELECT attempts, crashes FROM outbox.delivery ORDER BY 2, 1").fetchall() == [
        (1, 2), (2, 2), (1, 3),
    ]  # fmt: skip
    assert outbox.one("SELECT error FROM outbox.dead_letter") == "its worker died three times while it ran"
    assert outbox.one("SELECT attempts FROM outbox.dead_letter") == 1


def test_many_due_retries_are_claimed_as_room_allows_and_all_finish(outbox: Any, work: Any, until: Any) -> None:
    app = workers.App()
    now = most = 0

    @app.handler("e", concurrency=10)
    async def h() -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.002)
        now -= 1

    outbox.attach("h", "e")
    outbox.write("e", *({} for _ in range(500)))
    outbox.sql.execute(
        "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts, due_at)"
        " SELECT id, 'h', created_at, 'retrying', 1, now() FROM outbox.event"
    )
    leased: list[int] = []

    async def scenario(worker: workers.Worker) -> None:
        def all_done() -> bool:
            leased.append(outbox.one("SELECT count(*) FROM outbox.delivery WHERE lease IS NOT NULL"))
            return bool(outbox.count("done") == 500)

        await until(all_done)

    work(app, scenario)
    assert most <= 10
    assert max(leased) < 100


def test_a_worker_that_lost_an_entry_or_a_retry_ends_that_run(outbox: Any, work: Any, until: Any) -> None:
    app, started, cancelled = workers.App(), [], []

    @app.handler("e")
    async def h(n: int) -> None:
        started.append(n)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(n)
            raise

    outbox.attach("h", "e")
    outbox.publish("e", {"n": 1})
    outbox.write("e", {"n": 2})
    outbox.sql.execute(
        "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts, due_at)"
        " SELECT id, 'h', created_at, 'retrying', 1, now() FROM outbox.event WHERE payload->>'n' = '2'"
    )

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: len(started) == 2)
        key = stream_key("outbox", "e")
        (entry,) = outbox.redis.xpending_range(key, "h", "-", "+", 1)
        outbox.redis.xclaim(key, "h", "somebody", 0, [entry["message_id"]])
        outbox.sql.execute("UPDATE outbox.delivery SET lease = gen_random_uuid(), due_at = now() + interval '1 hour'")
        await until(lambda: len(cancelled) == 2)

    work(app, scenario, heartbeat=0.1)
    assert outbox.count("retrying") == 1
    assert outbox.one("SELECT attempts FROM outbox.delivery") == 1


@pytest.mark.parametrize("kind", ["async", "def", "batch", "twin"])
def test_a_run_whose_entry_was_taken_over_and_acknowledged_is_ended(
    kind: str, outbox: Any, work: Any, until: Any
) -> None:
    app, started, ended = workers.App(), [], []

    async def hold() -> None:
        started.append(kind)
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(kind)

    if kind == "def":

        @app.handler("e", name="h")
        def threaded() -> None:
            started.append(kind)
            try:
                for _ in range(6000):
                    time.sleep(0.01)
            finally:
                ended.append(kind)

    elif kind == "batch":

        @app.handler("e", name="h", batch=2)
        async def gathered(events: list[workers.Event]) -> None:
            await hold()

    else:
        app.handler("e", name="h")(hold)
    outbox.attach("h", "e")
    events = outbox.write("e", {}, {})
    entries = {stream_key("outbox", "e"): outbox.push("e", events)}
    if kind == "twin":
        other = catch_up_key("outbox", "e", "h")
        entries[other] = outbox.push("e", events, key=other)

    async def scenario(worker: workers.Worker) -> None:
        running = 1 if kind == "batch" else 2
        await until(
            lambda: (
                len(started) == running
                and sum(len(each.inflight) for each in worker._sources) == (4 if kind == "twin" else 2)
            )
        )
        # As `Leases.take_over` of another worker does; for a twin on the stream that it was not started from.
        outbox.sql.execute(
            "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts, due_at)"
            " SELECT id, 'h', created_at, 'retrying', 1, now() + interval '1 hour' FROM outbox.event"
        )
        started_from = next(job for job in worker._lanes["h"].active.values()).source.key
        key = next((each for each in entries if each != started_from), started_from)
        outbox.redis.xack(key, "h", *entries[key])
        await until(lambda: len(ended) == running)
        assert not worker._lanes["h"].active

    work(app, scenario, heartbeat=0.1)
    assert outbox.count("retrying") == 2
    assert outbox.one("SELECT max(attempts) FROM outbox.delivery") == 1


def test_what_waited_for_a_lost_run_to_end_is_run(outbox: Any, work: Any, until: Any) -> None:
    app, go, started = workers.App(), asyncio.Event(), []

    @app.handler("e", concurrency=1)
    async def h(n: int) -> None:
        started.append(n)
        if n == 1:
            try:
                await asyncio.Event().wait()
            finally:
                await go.wait()

    outbox.attach("h", "e")
    outbox.publish("e", {"n": 1})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: started)
        key = stream_key("outbox", "e")
        (entry,) = outbox.redis.xpending_range(key, "h", "-", "+", 1)
        outbox.redis.xclaim(key, "h", "somebody", 0, [entry["message_id"]])
        outbox.publish("e", {"n": 2})
        await until(lambda: worker._lanes["h"]._waiting)
        go.set()
        await until(lambda: outbox.count("done") == 1)

    work(app, scenario, heartbeat=0.1)
    assert started == [1, 2]


def test_an_entry_that_is_gone_is_not_lost(outbox: Any, work: Any, until: Any) -> None:
    app, go, started = workers.App(), asyncio.Event(), asyncio.Event()

    @app.handler("e")
    async def h() -> None:
        started.set()
        await go.wait()

    outbox.attach("h", "e")
    outbox.publish("e", {})

    async def scenario(worker: workers.Worker) -> None:
        await started.wait()
        outbox.redis.flushall()
        renewed = worker._sources[1]
        outbox.redis.xgroup_create(renewed.key, "h", id="0", mkstream=True)
        await worker._leases.entries._renew(worker._servers.at(renewed.key), [renewed])
        [gone] = worker._leases.entries.gone.items()
        await worker._leases._lose_taken(*gone)
        go.set()
        await until(lambda: outbox.count("done") == 1)

    work(app, scenario)


@pytest.mark.parametrize("how", ["obedient", "swallows"])
def test_a_timeout_is_a_failed_attempt_even_if_the_coroutine_swallows_it(
    how: str, outbox: Any, work: Any, until: Any
) -> None:
    app, release = workers.App(), asyncio.Event()

    @app.handler("e", timeout=0.1, concurrency=1, backoff=workers.Backoff(initial=100, jitter=0))
    async def h(n: int) -> None:
        while n == 1 and not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                if how == "obedient":
                    raise

    outbox.attach("h", "e")
    outbox.publish("e", {"n": 1}, {"n": 2})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("retrying") == 1 and outbox.count("done") == 1)
        reason = "HandlerTimeoutError: timed out after 0.1 s"
        endless = " and could not be interrupted" if how == "swallows" else ""
        assert outbox.one("SELECT error FROM outbox.delivery WHERE state = 'retrying'") == reason + endless
        release.set()

    work(app, scenario)


@pytest.mark.parametrize("how", ["python", "c"])
def test_a_timeout_frees_the_slot_of_a_thread_that_hangs(how: str, outbox: Any, work: Any, until: Any) -> None:
    app = workers.App()

    @app.handler("e", timeout=0.1, concurrency=1, backoff=workers.Backoff(initial=100, jitter=0))
    def h(n: int) -> None:
        deadline = time.monotonic() + 8
        if n == 1 and how == "c":
            time.sleep(8)
        while n == 1 and time.monotonic() < deadline:
            pass

    outbox.attach("h", "e")
    outbox.publish("e", {"n": 1}, {"n": 2})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("retrying") == 1 and outbox.count("done") == 1, timeout=6)

    work(app, scenario)


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), asyncio.CancelledError(), GeneratorExit()])
def test_no_exception_of_a_handler_ends_the_worker(error: BaseException, outbox: Any, work: Any, until: Any) -> None:
    app = workers.App()

    @app.handler("e", max_attempts=1)
    async def h(n: int) -> None:
        if n == 1:
            raise error

    @app.handler("f", max_attempts=1)
    def g(n: int) -> None:
        if n == 1:
            raise error

    for handler, event in (("h", "e"), ("g", "f")):
        outbox.attach(handler, event)
        outbox.publish(event, {"n": 1}, {"n": 2})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("dead") == 2 and outbox.count("done") == 2)

    work(app, scenario)


def test_errors_and_payloads_are_never_logged(outbox: Any, work: Any, until: Any, capsys: Any) -> None:
    app = workers.App()

    @app.handler("e", max_attempts=2, backoff=FAST)
    async def h(card: str) -> None:
        raise RuntimeError(f"card {card} was declined")

    outbox.attach("h", "e")
    outbox.publish("e", {"card": "4111-1111"})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("dead") == 1)

    work(app, scenario)
    logged = "".join(capsys.readouterr())
    assert "delivery.retry" in logged
    assert "delivery.dead" in logged
    assert "4111" not in logged


@pytest.mark.parametrize("statement", ["claim", "refresh"])
def test_retries_that_wait_at_one_handler_cost_the_others_nothing(statement: str, outbox: Any) -> None:
    outbox.attach("crowded", "e")
    outbox.attach("calm", "f")
    outbox.sql.execute(
        "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts, due_at)"
        " SELECT gen_random_uuid(), 'crowded', now(), 'retrying', 1, now() FROM generate_series(1, 5000)"
    )
    outbox.sql.execute("ANALYZE outbox.delivery")
    plan = outbox.sql.execute(
        f"EXPLAIN (ANALYZE, FORMAT JSON) {sql(statement, 'outbox')}",
        {"handlers": ["calm"], "limits": [10], "lease": 10.0, "suspects": True, "suspect": 2},
    ).fetchone()[0]
    assert removed(plan) < 10


def removed(plan: Any) -> int:
    """Rows that some node of the plan read in vain."""
    if isinstance(plan, list):
        return sum(map(removed, plan))
    if isinstance(plan, dict):
        return int(plan.get("Rows Removed by Filter", 0)) + sum(
            removed(value) for value in plan.values() if isinstance(value, list | dict)
        )
    return 0


def test_suspects_run_one_at_a_time_and_the_next_begins_when_one_is_over(
    outbox: Any, work: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whoever waits for one of these waits for ever.
    monkeypatch.setattr("workers.retries.LATER", 3600.0)
    monkeypatch.setattr("workers.retries.LOOK_EVERY", 3600.0)
    monkeypatch.setattr("workers.worker.REFRESH", 3600.0)
    app, running, most = workers.App(), set[int](), 0

    async def h(n: int) -> None:
        nonlocal most
        running.add(n)
        most = max(most, len(running))
        await asyncio.sleep(0)
        running.remove(n)

    app.handler("e", name="h")(h)
    app.handler("f", name="g")(h)
    for handler, event in (("h", "e"), ("g", "f")):
        outbox.attach(handler, event)
        outbox.write(event, *({"n": n} for n in range(15)))
    outbox.sql.execute(
        "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts, crashes, due_at)"
        " SELECT e.id, h.name, e.created_at, 'retrying', 2, 2, now() FROM outbox.event e"
        " JOIN outbox.handler h ON h.event_name = e.name"
    )

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 30)

    work(app, scenario)
    assert most == 1
    assert outbox.one("SELECT min(attempts), max(attempts), max(crashes) FROM outbox.delivery") == (3, 3, 2)
