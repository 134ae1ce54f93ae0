"""Dependencies in real runs: in the handler's transaction, before its COMMIT, and after its timeout."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import workers
from workers import Depends


class Ledger:
    def __init__(self, session: AsyncSession, event: workers.Event, n: int) -> None:
        self._session, self._event, self._n = session, event, n

    async def enter(self) -> None:
        await self._session.execute(
            text("INSERT INTO effect VALUES (:id, :n)"), {"id": str(self._event.id), "n": self._n}
        )


def test_what_a_dependency_writes_commits_with_the_outcome(outbox: Any, work: Any, until: Any) -> None:
    outbox.sql.execute("CREATE TABLE effect (id text PRIMARY KEY, n int)")
    app = workers.App()

    @app.handler("e")
    async def on_the_loop(ledger: Annotated[Ledger, Depends(Ledger)]) -> None:
        await ledger.enter()

    outbox.attach("on_the_loop", "e")
    ids = outbox.publish("e", {"n": 1}, {"n": 2})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 2)

    work(app, scenario)
    assert sorted(outbox.sql.execute("SELECT id, n FROM effect")) == sorted([(ids[0], 1), (ids[1], 2)])


def test_cleaning_up_is_part_of_the_transaction(outbox: Any, work: Any, until: Any) -> None:
    outbox.sql.execute("CREATE TABLE effect (n int, what text)")
    app = workers.App()

    def audited(session: Session, n: int) -> Iterator[None]:
        yield
        session.execute(text("INSERT INTO effect VALUES (:n, 'cleaned up')"), {"n": n})
        if n == 2:
            raise workers.Reject("cannot clean up")

    @app.handler("e")
    def h(n: int, session: Session, audited: Annotated[None, Depends(audited)]) -> None:
        session.execute(text("INSERT INTO effect VALUES (:n, 'ran')"), {"n": n})

    outbox.attach("h", "e")
    outbox.publish("e", {"n": 1}, {"n": 2})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 1 and outbox.count("dead") == 1)

    work(app, scenario)
    assert list(outbox.sql.execute("SELECT n, what FROM effect")) == [(1, "ran"), (1, "cleaned up")]


def test_a_run_that_times_out_cleans_up(outbox: Any, work: Any, until: Any) -> None:
    app, happened = workers.App(), []

    async def opened() -> AsyncIterator[None]:
        try:
            yield
        finally:
            happened.append("closed")

    def opened_plainly() -> Iterator[None]:
        try:
            yield
        finally:
            happened.append("closed plainly")

    @app.handler("e", timeout=0.2, max_attempts=1)
    async def h(a: Annotated[None, Depends(opened)], b: Annotated[None, Depends(opened_plainly)]) -> None:
        await asyncio.Event().wait()

    outbox.attach("h", "e")
    outbox.publish("e", {})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("dead") == 1)

    work(app, scenario)
    assert happened == ["closed plainly", "closed"]


def test_a_payload_that_does_not_fit_a_dependency_is_tried_again_and_then_dead_with_the_field(
    outbox: Any, work: Any, until: Any
) -> None:
    app = workers.App()

    def card(number: int) -> int:
        return number

    @app.handler("e", max_attempts=2, backoff=workers.Backoff(initial=0.01, jitter=0))
    async def h(card: Annotated[int, Depends(card)]) -> None: ...

    outbox.attach("h", "e")
    outbox.publish("e", {"number": "4111-secret"})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("dead") == 1)

    work(app, scenario)
    attempts, error = outbox.one("SELECT attempts, error FROM outbox.dead_letter")
    assert attempts == 2
    assert "dependency 'card' of handler 'h': field 'number'" in error
    assert "4111" not in error


IN_A_CHILD = """
import os
from collections.abc import Iterator
from typing import Annotated
import workers

app = workers.App()


def scaled(n: int) -> Iterator[int]:
    yield n * 10
    with open("cleaned-up", "w") as file:
        file.write(str(os.getpid()))


@app.handler("e", pool="process")
def h(scaled: Annotated[int, workers.Depends(scaled)]) -> None:
    with open("result", "w") as file:
        file.write(f"{scaled} {os.getpid()}")
"""


def test_a_child_process_has_dependencies_too(outbox: Any, start: Any, wait_for: Any, tmp_path: Any) -> None:
    outbox.attach("h", "e")
    outbox.publish("e", {"n": 7})
    start(IN_A_CHILD)
    wait_for(lambda: outbox.count("done") == 1)
    result, child = (tmp_path / "result").read_text().split()
    assert result == "70"
    assert (tmp_path / "cleaned-up").read_text() == child
