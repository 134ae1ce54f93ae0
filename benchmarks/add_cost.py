"""What `outbox.add` costs the web process: CPU time on top of a one-row ORM transaction, in microseconds.

    python -m benchmarks.add_cost [--rounds N] [--transactions N] [--further N] [--json]

Three kinds of transaction take turns in every round: one ORM row; the same with one event; the same with 1 + N events.
CPU time is this process's, user and system; the server's is not counted. The figures are medians over the rounds, of
the difference within each round.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import outbox
from console.servers import Postgres
from outbox import migrations

FIRST_TARGET, FURTHER_TARGET = 250.0, 80.0


class Base(DeclarativeBase):
    """What belongs to this benchmark."""


class User(Base):
    """The business data."""

    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]


def cost(session: Session, transactions: int, events: int) -> float:
    """CPU microseconds per transaction with one row and this many events."""
    gc.collect()
    began = time.process_time()
    for number in range(transactions):
        session.add(User(email="someone@example.org"))
        for _ in range(events):
            outbox.add(session, "send_email", user_id=number, template="welcome", language="en")
        session.commit()
    return (time.process_time() - began) / transactions * 1e6


def measure(url: str, rounds: int, transactions: int, further: int) -> dict[str, float]:
    """The figures in microseconds, of `rounds` rounds after one for warming up."""
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://", 1))
    Base.metadata.create_all(engine)
    found: list[tuple[float, float, float]] = []
    with Session(engine) as session:
        for _ in range(rounds + 1):
            plain, one, many = (cost(session, transactions, events) for events in (0, 1, 1 + further))
            found.append((plain, one - plain, (many - one) / further))
    engine.dispose()
    base, first, each = (median(column) for column in zip(*found[1:], strict=True))
    return {"plain_us": base, "first_us": first, "further_us": each}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run against an embedded PostgreSQL of its own."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.add_cost", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--transactions", type=int, default=300, help="per kind and round")
    parser.add_argument("--further", type=int, default=10, help="events after the first")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="obx-") as folder, Postgres(Path(folder) / "pg", durable=False) as server:
        migrations.apply(server.url())
        found = measure(server.url(), given.rounds, given.transactions, given.further)
    print(f"one-row ORM transaction      {found['plain_us']:7.0f} µs CPU")
    print(f"first outbox.add             {found['first_us']:+7.0f} µs  (target <= {FIRST_TARGET:.0f})")
    print(f"each further outbox.add      {found['further_us']:+7.0f} µs  (target <= {FURTHER_TARGET:.0f})")
    if given.json:
        print(json.dumps({name: round(value, 1) for name, value in found.items()}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
