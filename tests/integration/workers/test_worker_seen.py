"""What a worker leaves for those who look: that it lives, and every attempt that failed."""

from __future__ import annotations

from typing import Any

import workers
from outbox import admin

FAST = workers.Backoff(initial=0.01, maximum=0.01, jitter=0)


def test_a_worker_is_listed_with_its_handlers_from_its_start_to_its_end(outbox: Any, work: Any) -> None:
    app = workers.App()

    @app.handler("e")
    async def h() -> None: ...

    @app.handler("e")
    async def g() -> None: ...

    async def scenario(worker: workers.Worker) -> None:
        (seen,) = admin.status(outbox.sql).workers
        assert (seen.name, sorted(seen.handlers)) == (worker.name, ["g", "h"])
        assert {handler.workers for handler in admin.status(outbox.sql).handlers} == {1}

    work(app, scenario)
    assert admin.status(outbox.sql).workers == ()


def test_the_rows_of_workers_that_died_without_a_word_go_after_a_day(outbox: Any, work: Any) -> None:
    outbox.sql.execute(
        "INSERT INTO outbox.worker (name, handlers, seen_at) VALUES"
        " ('old', '{}', now() - interval '25 hours'), ('young', '{}', now() - interval '23 hours')"
    )
    app = workers.App()

    @app.handler("e")
    async def h() -> None: ...

    async def scenario(worker: workers.Worker) -> None: ...

    work(app, scenario)
    assert outbox.sql.execute("SELECT name FROM outbox.worker").fetchall() == [("young",)]


def test_every_failed_attempt_is_kept_with_its_time_and_error_also_when_a_later_one_worked(
    outbox: Any, work: Any, until: Any
) -> None:
    app = workers.App()

    @app.handler("e", backoff=FAST)
    async def h(context: workers.Context) -> None:
        if context.attempt < 3:
            raise RuntimeError(f"no {context.attempt}" + "x" * 600)

    outbox.attach("h", "e")
    outbox.publish("e", {})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 1)

    work(app, scenario)
    failures = outbox.one("SELECT failures FROM outbox.delivery")
    assert [each["attempt"] for each in failures] == [1, 2]
    assert [each["error"][:18] for each in failures] == ["RuntimeError: no 1", "RuntimeError: no 2"]
    assert all(len(each["error"]) == 500 for each in failures)
    assert failures[0]["at"] < failures[1]["at"]


def test_of_many_failed_attempts_the_last_ten_are_kept(outbox: Any, work: Any, until: Any) -> None:
    app = workers.App()

    @app.handler("e", backoff=FAST, max_attempts=12)
    async def h() -> None:
        raise RuntimeError("never")

    outbox.attach("h", "e")
    outbox.publish("e", {})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("dead") == 1)

    work(app, scenario)
    assert [each["attempt"] for each in outbox.one("SELECT failures FROM outbox.delivery")] == list(range(3, 13))


def test_what_dies_at_once_keeps_its_error_and_what_works_at_once_keeps_nothing(
    outbox: Any, work: Any, until: Any
) -> None:
    app = workers.App()

    @app.handler("bad")
    async def bad() -> None:
        raise workers.Reject("no such user")

    @app.handler("good")
    async def good() -> None: ...

    outbox.attach("bad", "bad")
    outbox.attach("good", "good")
    outbox.publish("bad", {})
    outbox.publish("good", {})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("dead") == 1 and outbox.count("done") == 1)

    work(app, scenario)
    kept = dict(outbox.sql.execute("SELECT handler, failures FROM outbox.delivery").fetchall())
    assert kept["good"] is None
    assert [(each["attempt"], "no such user" in each["error"]) for each in kept["bad"]] == [(1, True)]
