"""What happens in the demo, from the first request to the reconciliation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from console.demo import ledger
from console.demo.ledger import Connection
from console.demo.load import POISON, Answers, Customers, Order, SignUp, plan
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


async def until(what: str, condition: Callable[[], Awaitable[bool]]) -> None:
    """Ask until it is so. Raises `StoryError` after `PATIENCE` seconds."""
    deadline = time.monotonic() + PATIENCE
    while not await condition():
        if time.monotonic() > deadline:
            raise StoryError(f"waited {PATIENCE:.0f} s in vain: {what}")
        await asyncio.sleep(0.05)


async def play(stage: Stage, view: View, *, requests: int, seed: int) -> Outcome:
    """Run the story on a stage that is up, and reconcile at its end even when a part of it went wrong."""
    async with await ledger.connect(stage.settings.libpq_url()) as connection:

        async def registered() -> bool:
            return (await ledger.subscriptions(connection)).keys() >= EVENT_NAMES

        await until("the workers register their handlers", registered)
        customers = Customers(stage.url)
        complaint = None
        async with Bystander(stage.settings, await ledger.subscriptions(connection)) as bystander:
            painter = asyncio.create_task(_paint(stage.settings.libpq_url(), view))
            try:
                await _story(stage, view, connection, customers, plan(requests, seed))
            except* StoryError as errors:
                complaint = "; ".join(str(error) for error in errors.exceptions)
            finally:
                painter.cancel()
                await asyncio.wait([painter])
            await bystander.catch_up()
        view.show(await ledger.counts(connection))
        books = await ledger.books(connection, customers.answers, bystander.published)
        return Outcome(
            answers=customers.answers,
            published=len(bystander.published),
            retried=await ledger.retried(connection),
            reconciliation=reconcile(books),
            complaint=complaint,
        )


async def _paint(url: str, view: View) -> None:
    async with await ledger.connect(url) as connection:
        while True:
            view.show(await ledger.counts(connection))
            await asyncio.sleep(view.interval)


async def _story(
    stage: Stage, view: View, connection: Connection, customers: Customers, planned: list[SignUp | Order]
) -> None:
    view.say(f"{len(planned):,} requests begin")
    async with asyncio.TaskGroup() as group:
        load = group.create_task(customers.send(planned))
        group.create_task(_kill_relay(stage, view, connection, customers, len(planned) // 3))
        group.create_task(_kill_worker(stage, view, customers, len(planned) * 2 // 3))
        await load
        answers = customers.answers
        view.say(f"all answered: {len(answers.accepted):,} accepted, {len(answers.refused):,} declined and rolled back")
    await until("all is handled", lambda: _drained(connection))
    await _replay(stage, view)
    await until("the replayed event is handled", lambda: _drained(connection))


async def _drained(connection: Connection) -> bool:
    return (await ledger.counts(connection)).lag == 0


async def _kill_relay(stage: Stage, view: View, connection: Connection, customers: Customers, after: int) -> None:
    """Kill the relay that leads, and see the other one take over."""
    await customers.reached(after)
    before = await ledger.leader(connection)
    leading = next((relay for relay in stage.relays if before and before.endswith(f":{relay.pid}")), None)
    if leading is None:
        raise StoryError(f"none of the demo's relays leads, but {before}")
    pid = leading.pid
    leading.kill()
    killed = time.monotonic()
    view.say(f"kill -9 {pid}: the relay that leads")

    async def replaced() -> bool:
        return await ledger.leader(connection) not in (None, before)

    await until("the standby takes over", replaced)
    view.say(f"the standby leads, {time.monotonic() - killed:.1f} s later")


async def _kill_worker(stage: Stage, view: View, customers: Customers, after: int) -> None:
    """Kill a worker while it holds events that it has not finished."""
    await customers.reached(after)
    view.say("kill")


async def _replay(stage: Stage, view: View) -> None:
    """Mend what the dead letter complains about, and put it back with the product's own replay."""
    letters = await asyncio.to_thread(admin.dead_letters, stage.settings)
    if len(letters) != 1:
        raise StoryError(f"there should be one dead letter, not {len(letters)}")
    (letter,) = letters
    view.say(f"dead letter: {letter.handler}, {letter.attempts} attempts: {letter.error.splitlines()[-1]}")
    async with await ledger.connect(stage.settings.libpq_url()) as shop:
        await shop.execute("INSERT INTO tax_rates (country, percent) VALUES (%s, 0)", [POISON.country])
    which = admin.Filter(ids=(letter.event_id,), handler=letter.handler)
    replayed = await asyncio.to_thread(admin.replay, stage.settings, which, reason="there is a tax rate now")
    view.say(f"a tax rate for {POISON.country} is there now; replayed {replayed.count}")
