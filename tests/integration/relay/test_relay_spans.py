"""Holes are found for all handlers in one reading of the log: the same as a plain look at every event finds."""

from __future__ import annotations

import random
from typing import Any, cast

import psycopg
import pytest

from outbox.position import END, Position
from relay import lead, tick
from relay.spans import FEW_NAMES, Span, together
from relay.sweep import Sweep

pytestmark = pytest.mark.oldest

NAMES = [f"name{n}" for n in range(FEW_NAMES + 3)]
TICKS = 12


def write_log(url: str, connection: psycopg.Connection, rng: random.Random) -> list[tuple[Position, str, Any]]:
    """Ticks over transactions that overlap; the position, name and id of every event, as the feed reads them."""
    (last,) = tick.load(connection, "outbox", 0)
    open_ = [psycopg.connect(url) for _ in range(3)]
    for _ in range(TICKS):
        for writer in open_:
            for _ in range(rng.randint(0, 4)):
                writer.execute("INSERT INTO outbox.event (name, payload) VALUES (%s, '{}')", [rng.choice(NAMES)])
            if rng.random() < 0.5:
                writer.commit()
        if found := tick.take(connection.cursor(), "outbox", last, 0, NAMES):
            last = found.tick
    for writer in open_:
        writer.commit()
        writer.close()
    if found := tick.take(connection.cursor(), "outbox", last, 0, NAMES):
        last = found.tick
    events: list[tuple[Position, str, Any]] = []
    for each in tick.load(connection, "outbox", 1):
        for chunk in tick.read(connection, "outbox", each, NAMES, -1):
            for name, entries in chunk.parts.items():
                for number in entries.ids:
                    at = Position.parse(number)
                    row = connection.execute("SELECT id FROM outbox.event WHERE seq = %s", [at.seq]).fetchone()
                    assert row is not None
                    events.append((at, name.decode(), row[0]))
    return sorted(events)


@pytest.mark.parametrize("seed", range(8))
def test_every_hole_in_every_span_and_no_other_event_gets_a_retry(database_url: str, seed: int) -> None:
    rng = random.Random(seed)
    with lead.connect(database_url, "outbox", role="sweep") as connection:
        events = write_log(database_url, connection, rng)
        assert len({event_id for *_, event_id in events}) == len(events) > TICKS
        places = [at for at, *_ in events] + [Position(at.tick, END) for at, *_ in events]
        spans, wanted, done = [], set(), []
        for number in range(rng.choice([1, 2, 3, 12])):
            span = Span(f"handler{number}", rng.choice(NAMES), *sorted(rng.choices(places, k=2)))
            spans.append(span)
            for at, name, event_id in events:
                if name != span.event_name:
                    continue
                if rng.random() < 0.7:
                    done.append((event_id, span.handler))
                elif span.done < at <= span.target:
                    wanted.add((event_id, span.handler))
        with connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts)"
                " SELECT id, %s, created_at, 'done', 1 FROM outbox.event WHERE id = %s",
                [(handler, event_id) for event_id, handler in done],
            )
        idle = cast(Any, None)
        sweep = Sweep(idle, idle, schema="outbox", prefix="outbox", owner="", published=idle, ring=idle, trimmed=idle)
        assert sweep.check(connection, spans) == {
            span.handler: span.target for span in spans if span.target > span.done
        }
        found = connection.execute("SELECT event_id, handler FROM outbox.delivery WHERE state = 'retrying'").fetchall()
    assert set(found) == wanted


def test_handlers_of_many_names_share_a_read_where_they_are_at_the_same_place() -> None:
    near = [Span(name, name, Position(5, n), Position(9, n)) for n, name in enumerate(NAMES)]
    far = [Span(name + "'", name, Position(50, n), Position(90, n)) for n, name in enumerate(NAMES)]
    assert together([*far, *near]) == near
    assert together(far) == far


def test_what_lies_between_two_spans_is_not_read() -> None:
    laggards = [Span(name, name, Position(1, n), Position(2, n)) for n, name in enumerate(NAMES)]
    others = [Span(name + "'", name, Position(50, 0), Position(60, 0)) for name in NAMES]
    assert together([*others, *laggards]) == laggards


def test_a_few_names_are_read_one_handler_after_the_other() -> None:
    spans = [Span(f"h{n}", NAMES[n % FEW_NAMES], Position(n, 0), Position(100, 0)) for n in range(6)]
    assert together(reversed(spans)) == spans[:1]
