"""What happens in the demo, from the first request to the reconciliation."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from console.demo import ledger
from console.demo.ledger import Connection
from console.demo.load import POISON, Answers, Customers, plan
from console.demo.reconciliation import Reconciliation, reconcile
from console.demo.stage import Stage
from console.demo.streams import Bystander
from console.demo.view import View
from outbox import admin

PATIENCE = 40.0
"""Seconds after which something that should happen counts as not happening."""

EVENT_NAMES = {"signed_up", "order_placed", "invoice_written"}
"""What the shop says."""


class StoryError(Exception):
    """Something did not happen as it should."""


@dataclass(frozen=True)
class Outcome:
    """How the demo ended. `complaint` says what went wrong besides the books; None when nothing did."""

    answers: Answers
    published: int
    retried: int
    reconciliation: Reconciliation
    complaint: str | None = None

    @property
    def good(self) -> bool:
        """Whether everything went as promised."""
        return self.complaint is None and not self.answers.unexpected and self.reconciliation.agrees


async def until(stage: Stage, what: str, condition: Callable[[], Awaitable[bool]], *, every: float = 0.05) -> None:
    """Ask until it is so, `every` so many seconds.

    Raises `StoryError` after `PATIENCE` seconds, or when a process ended that nobody killed.
    """
    deadline = time.monotonic() + PATIENCE
    while not await condition():
        if fallen := stage.fallen():
            raise StoryError(f"{what}: in vain, for {' and '.join(fallen)} ended")
        if time.monotonic() > deadline:
            raise StoryError(f"{what}: not within {PATIENCE:.0f} s")
        await asyncio.sleep(every)


async def play(stage: Stage, view: View, *, requests: int, seed: int) -> Outcome:
    """Run the story on a stage that is up, and reconcile at its end even when a part of it went wrong."""
    async with await ledger.connect(stage.settings.libpq_url()) as connection:

        async def registered() -> bool:
            return (await ledger.subscriptions(connection)).keys() >= EVENT_NAMES

        await until(stage, "the workers register their handlers", registered)
        customers = Customers(stage.url)
        complaint = None
        async with Bystander(stage.settings, await ledger.subscriptions(connection)) as bystander:
            painter = asyncio.create_task(_paint(stage, view, bystander))
            try:
                await Story(stage, view, connection, bystander, customers).tell(requests, seed)
            except* StoryError as errors:
                complaint = "; ".join(str(error) for error in errors.exceptions)
            finally:
                painter.cancel()
                await asyncio.wait([painter])
            await bystander.catch_up()
            view.show(await _figures(connection, bystander))
        books = await ledger.books(connection, customers.answers, bystander.published)
        return Outcome(
            answers=customers.answers,
            published=len(bystander.published),
            retried=await ledger.retried(connection),
            reconciliation=reconcile(books),
            complaint=complaint,
        )


async def _paint(stage: Stage, view: View, bystander: Bystander) -> None:
    async with await ledger.connect(stage.settings.libpq_url()) as connection:
        while True:
            view.show(await _figures(connection, bystander))
            await asyncio.sleep(view.interval)


async def _figures(connection: Connection, bystander: Bystander) -> dict[str, int]:
    counts = await ledger.counts(connection)
    return {
        "committed": counts.committed,
        "published": len(bystander.published),
        "done": counts.done,
        "retrying": counts.retrying,
        "dead": counts.dead,
        "lag": counts.lag,
    }


@dataclass(frozen=True)
class Story:
    """The acts. Each raises `StoryError` when something does not happen as it should."""

    stage: Stage
    view: View
    connection: Connection
    bystander: Bystander
    customers: Customers

    async def tell(self, requests: int, seed: int) -> None:
        """Everything, in order: requests, with kills in their middle; then the dead letter's replay."""
        self.view.say(f"{requests:,} requests begin")
        async with asyncio.TaskGroup() as group:
            group.create_task(self._send(requests, seed))
            group.create_task(self._kill_relay(after=requests // 3))
            group.create_task(self._kill_worker(after=requests // 2))
        await until(self.stage, "all is handled", self._drained)
        await self._replay()
        await until(self.stage, "the replayed event is handled", self._drained)

    async def _drained(self) -> bool:
        return (await ledger.counts(self.connection)).lag == 0

    async def _send(self, requests: int, seed: int) -> None:
        await self.customers.send(plan(requests, seed))
        answers = self.customers.answers
        accepted, refused = len(answers.accepted), len(answers.refused)
        self.view.say(f"all answered: {accepted:,} accepted, {refused:,} declined and rolled back")

    async def _kill_relay(self, after: int) -> None:
        """Kill the relay that leads, and see the other one take over."""
        await self.customers.reached(after)
        before = await ledger.leader(self.connection)
        leading = next((relay for relay in self.stage.relays if before and before.endswith(f":{relay.pid}")), None)
        if leading is None:
            raise StoryError(f"none of the demo's relays leads, but {before}")
        pid = leading.pid
        leading.kill()
        killed = time.monotonic()
        self.view.say(f"kill -9 {pid}: the relay that leads")

        async def replaced() -> bool:
            return await ledger.leader(self.connection) not in (None, before)

        await until(self.stage, "the standby takes over", replaced)
        self.view.say(f"the standby leads, {time.monotonic() - killed:.1f} s later")

    async def _kill_worker(self, after: int) -> None:
        """Kill a worker while it holds events that it has not finished."""
        await self.customers.reached(after)
        victim = self.stage.workers[0]
        pid = victim.pid
        held = 0

        async def caught_at_work() -> bool:
            # Stopped, it cannot finish what it holds between the look and the kill.
            nonlocal held
            os.kill(pid, signal.SIGSTOP)
            try:
                unfinished = await self.bystander.unfinished()
                held = sum(count for name, count in unfinished.items() if f"-{pid}-" in name)
            finally:
                if not held:
                    os.kill(pid, signal.SIGCONT)
            return held > 0

        await until(self.stage, "a worker is in the middle of work", caught_at_work, every=0.01)
        victim.kill()
        self.view.say(f"kill -9 {pid}: a worker with {held} unfinished events in its hands; nobody replaces it")

    async def _replay(self) -> None:
        """Mend what the dead letter complains about, and put it back with the product's own replay."""
        settings = self.stage.settings
        letters = await asyncio.to_thread(admin.dead_letters, settings)
        if len(letters) != 1:
            raise StoryError(f"there should be one dead letter, not {len(letters)}")
        (letter,) = letters
        self.view.say(f"dead letter: {letter.handler}, {letter.attempts} attempts: {letter.error.splitlines()[-1]}")
        await self.connection.execute("INSERT INTO tax_rates (country, percent) VALUES (%s, 0)", [POISON.country])
        which = admin.Selection(ids=(letter.event_id,), handler=letter.handler)
        replayed = await asyncio.to_thread(admin.replay, settings, which, reason="there is a tax rate now")
        self.view.say(f"a tax rate for {POISON.country} is there now; replayed {replayed.count}")
