"""The application of the latency benchmark, on SQLAlchemy: `python -m benchmarks.writer PER_SECOND SECONDS FILE`.

Sends at fixed moments, however long the one before took. The clock starts when the business row is written and
`outbox.add` is about to be called, so `add`, the event's INSERT and the whole COMMIT count. How long these took goes
into the file at the end, a line of nanoseconds each.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import outbox


class Base(DeclarativeBase):
    """The application's models."""


class Purchase(Base):
    """The business row."""

    __tablename__ = "purchase"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[int]


def main(per_second: float, seconds: float, file: Path) -> None:
    engine = create_engine(os.environ["OUTBOX_DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://", 1))
    Base.metadata.create_all(engine)
    took: list[int] = []
    begin = time.monotonic()
    for number in range(round(per_second * seconds)):
        time.sleep(max(0.0, begin + number / per_second - time.monotonic()))
        with Session(engine) as session:
            purchase = Purchase(customer=number)
            session.add(purchase)
            session.flush()
            sent = time.monotonic_ns()
            outbox.add(session, "order_placed", order_id=purchase.id, sent_ns=sent)
            session.commit()
            took.append(time.monotonic_ns() - sent)
    file.write_text("".join(f"{nanoseconds}\n" for nanoseconds in took))


if __name__ == "__main__":
    main(float(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]))
