"""What becomes of a result after the handler returned it: middleware, a lost race, replays, and who asks for it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from structlog.testing import capture_logs

import outbox as api
import workers
from console import main
from outbox import admin
from outbox.admin import Outcome, Selection
from outbox.settings import Settings

INSERT = text("INSERT INTO effects VALUES (:n)")


@pytest.fixture(autouse=True)
def _effects(outbox: Any) -> None:
    outbox.sql.execute("CREATE TABLE effects (n integer)")


def result(outbox: Any) -> Any:
    return outbox.one("SELECT result FROM outbox.delivery")


def declare(app: workers.App, kind: str, body: Any) -> None:
    """A handler `h` of `e` that returns what `body` gives."""
    if kind == "plain":

        @app.handler("e", name="h", max_attempts=1)
        async def plain() -> Any:
            return body()

    else:

        @app.handler("e", name="h", max_attempts=1)
        async def transactional(session: AsyncSession) -> Any:
            await session.execute(INSERT, {"n": 1})
            return body()


EITHER = pytest.mark.parametrize("kind", ["plain", "transactional"])


@EITHER
@pytest.mark.parametrize("passes_on", ["the same", "one without"])
def test_middleware_sees_the_result_and_a_done_without_takes_back_what_is_not_committed(
    outbox: Any, work: Any, until: Any, kind: str, passes_on: str
) -> None:
    app, seen = workers.App(), []

    @app.middleware
    async def watch(event: workers.Event, next: workers.Next) -> workers.Outcome:
        outcome = await next(event)
        seen.append(outcome)
        return outcome if passes_on == "the same" else workers.Done()

    declare(app, kind, lambda: ("pages", 3))
    outbox.attach("h", "e")

    async def scenario(worker: workers.Worker) -> None:
        outbox.publish("e", {})
        await until(lambda: outbox.count("done") == 1)

    with capture_logs() as logs:
        work(app, scenario)
    assert seen == [workers.Done(result=["pages", 3])]
    assert result(outbox) == (None if (kind, passes_on) == ("plain", "one without") else ["pages", 3])
    assert "middleware.too_late" not in {each["event"] for each in logs}


@EITHER
def test_another_result_of_a_middleware_is_kept_unless_one_is_committed(
    outbox: Any, work: Any, until: Any, kind: str
) -> None:
    app = workers.App()

    @app.middleware
    async def change(event: workers.Event, next: workers.Next) -> workers.Outcome:
        await next(event)
        return workers.Done(result="another s3cret")

    declare(app, kind, lambda: "a s3cret")
    outbox.attach("h", "e")

    async def scenario(worker: workers.Worker) -> None:
        outbox.publish("e", {})
        await until(lambda: outbox.count("done") == 1)

    with capture_logs() as logs:
        work(app, scenario)
    assert result(outbox) == ("another s3cret" if kind == "plain" else "a s3cret")
    late = [each["outcome"] for each in logs if each["event"] == "middleware.too_late"]
    assert late == ([] if kind == "plain" else ["Done with another result"])
    assert "s3cret" not in str(logs)


def test_the_run_that_counts_is_the_last_and_a_failure_has_no_result(outbox: Any, work: Any, until: Any) -> None:
    app, runs = workers.App(), 0

    @app.middleware
    async def twice(event: workers.Event, next: workers.Next) -> workers.Outcome:
        await next(event)
        return await next(event)

    def body() -> Any:
        nonlocal runs
        runs += 1
        return ["first", None][runs - 1]

    declare(app, "plain", body)
    outbox.attach("h", "e")

    async def scenario(worker: workers.Worker) -> None:
        outbox.publish("e", {})
        await until(lambda: outbox.count("done") == 1)

    work(app, scenario)
    assert (runs, result(outbox)) == (2, None)


CONFLICT = """
CREATE SEQUENCE tries;
CREATE FUNCTION conflict() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF nextval('tries') = 1 THEN RAISE serialization_failure; END IF;
  RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER conflict AFTER INSERT ON effects
  DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION conflict();
"""


def test_a_transaction_that_is_repeated_leaves_the_result_of_the_one_that_commits(
    outbox: Any, work: Any, until: Any
) -> None:
    app, answers = workers.App(), ["rolled back", None]
    declare(app, "transactional", lambda: answers.pop(0))
    outbox.sql.execute(CONFLICT)
    outbox.attach("h", "e")

    async def scenario(worker: workers.Worker) -> None:
        outbox.publish("e", {})
        await until(lambda: outbox.count("done") == 1)

    work(app, scenario)
    assert (answers, result(outbox)) == ([], None)


@pytest.mark.parametrize("batch", [None, 1])
def test_a_middleware_of_a_batch_sees_and_changes_results_too(
    outbox: Any, work: Any, until: Any, batch: int | None
) -> None:
    app, seen = workers.App(), []

    @app.batch_middleware
    async def change(events: Any, next: workers.BatchNext) -> workers.Outcomes:
        outcomes = await next(events)
        seen.extend(outcomes.values())
        return outcomes if batch is None else {id: workers.Done(result="another") for id in outcomes}

    @app.handler("e", name="h", batch=2)
    async def several(events: list[workers.Event]) -> Any:
        return [workers.Done(result=(1, 2)) for _ in events]

    outbox.attach("h", "e")

    async def scenario(worker: workers.Worker) -> None:
        outbox.publish("e", {})
        await until(lambda: outbox.count("done") == 1)

    work(app, scenario)
    assert seen == [workers.Done(result=[1, 2])]
    assert result(outbox) == ([1, 2] if batch is None else "another")


@EITHER
def test_a_replay_has_no_result_until_it_has_its_own(outbox: Any, work: Any, until: Any, kind: str) -> None:
    app = workers.App()
    answers: list[Any] = ["first", "second", None, "third", ValueError("no")]
    results: list[Any] = []

    def body() -> Any:
        # While it runs again, the last result is no longer that of this event.
        results.append(outbox.one("SELECT result FROM outbox.delivery"))
        answer = answers[len(results) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    declare(app, kind, body)
    outbox.attach("h", "e")
    kept: list[Any] = []

    async def scenario(worker: workers.Worker) -> None:
        outbox.publish("e", {})
        for number in range(len(answers)):
            ended = "dead" if number == len(answers) - 1 else "done"
            await until(lambda number=number, ended=ended: len(results) == number + 1 and outbox.count(ended) == 1)
            kept.append(result(outbox))
            if ended == "done":
                admin.replay(outbox.sql, Selection(handler="h"), outcome=Outcome.DONE)
                await worker.refresh()

    work(app, scenario)
    assert results == [None] * len(answers)
    assert kept == ["first", "second", None, "third", None]


def test_a_dead_letter_that_was_replayed_leaves_the_result_of_the_run_that_worked(
    outbox: Any, work: Any, until: Any
) -> None:
    app, broken = workers.App(), [True]

    def body() -> Any:
        if broken:
            raise ValueError("no")
        return "mended"

    declare(app, "transactional", body)
    outbox.attach("h", "e")

    async def scenario(worker: workers.Worker) -> None:
        outbox.publish("e", {})
        await until(lambda: outbox.count("dead") == 1)
        assert result(outbox) is None
        broken.clear()
        admin.replay(outbox.sql, Selection(handler="h"))
        await worker.refresh()
        await until(lambda: outbox.count("done") == 1)

    work(app, scenario)
    assert result(outbox) == "mended"


def test_who_was_superseded_leaves_no_result(outbox: Any, work: Any, until: Any) -> None:
    app = workers.App()

    def body() -> Any:
        outbox.sql.execute(
            "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts, result)"
            " SELECT id, 'h', created_at, 'done', 1, to_json('of the other one'::text) FROM outbox.event"
        )
        return "too late"

    declare(app, "transactional", body)
    outbox.attach("h", "e")

    async def scenario(worker: workers.Worker) -> None:
        outbox.publish("e", {})
        await until(lambda: outbox.count("done") == 1 and outbox.pending("e", "h") == 0)

    work(app, scenario)
    assert result(outbox) == "of the other one"
    assert outbox.one("SELECT count(*) FROM effects") == 0


def test_what_was_cancelled_while_it_ran_keeps_no_result_of_what_may_have_been_purged(
    outbox: Any, work: Any, until: Any
) -> None:
    app = workers.App()

    def body() -> Any:
        outbox.sql.execute(
            "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts)"
            " SELECT id, 'h', created_at, 'cancelled', 0 FROM outbox.event"
        )
        return "content"

    declare(app, "plain", body)
    outbox.attach("h", "e")

    async def scenario(worker: workers.Worker) -> None:
        outbox.publish("e", {})
        await until(lambda: outbox.count("done") == 1)

    work(app, scenario)
    assert result(outbox) is None


def test_a_result_is_told_by_the_status_and_with_the_log(
    outbox: Any, work: Any, until: Any, settings: Settings, monkeypatch: Any, capsys: Any
) -> None:
    app = workers.App()
    declare(app, "transactional", lambda: {"pages": 3, "words": "grün \0"})
    outbox.attach("h", "e")
    ids: list[str] = []

    async def scenario(worker: workers.Worker) -> None:
        ids.extend(outbox.publish("e", {}))
        await until(lambda: outbox.count("done") == 1)

    work(app, scenario)
    wanted = {"pages": 3, "words": "grün \0"}
    engine = create_engine(settings.sqlalchemy_url())
    with Session(engine) as session:
        told = api.status(session, ids[0])
    engine.dispose()
    assert told.handlers[0].result == wanted
    assert json.loads(json.dumps(told.as_dict()["handlers"], default=str))[0]["result"] == wanted
    assert admin.events(outbox.sql)[0].deliveries[0].result == wanted

    monkeypatch.setenv("OUTBOX_DATABASE_URL", settings.libpq_url())
    monkeypatch.setenv("OUTBOX_REDIS_URL", settings.redis_url.get_secret_value())
    monkeypatch.setenv("COLUMNS", "200")
    assert main.run(("status", ids[0])) == 0
    assert '1 attempt, result {"pages": 3, "words": "grün' in capsys.readouterr().out
    assert main.run(("status", ids[0], "--output", "json")) == 0
    assert json.loads(capsys.readouterr().out)["handlers"][0]["result"] == wanted
    assert main.run(("events", "--output", "json")) == 0
    assert json.loads(capsys.readouterr().out)[0]["deliveries"][0]["result"] == wanted
