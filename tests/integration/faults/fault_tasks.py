"""The handlers that run while processes die. Each leaves a trace for every run that took effect.

`outbox worker fault_tasks:app` runs them; as a program of its own this module does the same with leases of a second, so
that a test need not wait for long until a dead worker's deliveries are taken over.
"""

from __future__ import annotations

import asyncio
import os
import signal

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import outbox
import workers
from outbox.settings import Settings

app = workers.App()
EFFECT = text("INSERT INTO effect (handler, event_id) VALUES (:handler, :event_id)")
QUICKLY = workers.Backoff(initial=0.1, maximum=0.5, jitter=0.1)


@app.handler("ordered", backoff=QUICKLY)
async def notify(n: int, event: workers.Event) -> None:
    """Plain: its effect is a line in a file."""
    await asyncio.sleep(0.001 * (n % 5))
    path = os.open(os.environ["FAULTS_EFFECTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(path, f"{event.id}\n".encode())
    os.close(path)


@app.handler("ordered", backoff=QUICKLY)
async def book(n: int, session: AsyncSession, event: workers.Event) -> None:
    """Transactional: its effect and a follow-up event stand or fall with its outcome."""
    await session.execute(EFFECT, {"handler": "book", "event_id": event.id})
    outbox.add(session, "booked", n=n, ordered=str(event.id))
    await asyncio.sleep(0.001 * (n % 7))


@app.handler("ordered", backoff=QUICKLY)
def charge(n: int, session: Session, event: workers.Event, context: workers.Context) -> None:
    """Transactional in a thread; some first attempts fail after having written."""
    session.execute(EFFECT, {"handler": "charge", "event_id": event.id})
    if n % 5 == 0 and context.attempt == 1:
        raise RuntimeError("the bank is closed")


@app.handler("booked")
async def ship(n: int, ordered: str, session: AsyncSession) -> None:
    """The follow-up's handler; its effect carries the id of the event that began it all."""
    await session.execute(EFFECT, {"handler": "ship", "event_id": ordered})


async def main() -> None:
    """Work until SIGTERM."""
    worker = workers.Worker(app, Settings(), lease=1.0, heartbeat=0.2)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.request_stop)
    await worker.run()


if __name__ == "__main__":
    from outbox import telemetry

    telemetry.configure("info", "logfmt")
    asyncio.run(main())
