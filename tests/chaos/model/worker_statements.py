"""What the workers' statements do, on the simulated PostgreSQL, by the names of their files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tests.chaos.model.postgres import Delivery, Handler, Postgres

Asked = Mapping[str, Any]
Rows = list[tuple[Any, ...]]


def words(given: Any) -> list[str]:
    """A PostgreSQL array, as it is sent."""
    if isinstance(given, str):
        return [word for word in given[1:-1].split(",") if word]
    return list(given)


def _rows(server: Postgres, asked: Asked, *more: str) -> Iterator[tuple[Any, ...]]:
    """(event, handler, …) of each delivery that is asked about."""
    return zip(words(asked["ids"]), words(asked["handlers"]), *(words(asked[name]) for name in more), strict=True)


def _leased(server: Postgres, event_id: str, handler: str, lease: str) -> Delivery | None:
    row = server.deliveries.get((event_id, handler))
    return row if row is not None and lease is not None and row.lease == lease else None


def _register(server: Postgres, asked: Asked) -> Rows:
    for name, event_name in zip(asked["names"], asked["event_names"], strict=True):
        if name not in server.handlers:
            server.handlers[name] = Handler(name, event_name, server.now())
    return list(zip(asked["names"], asked["event_names"], strict=True))


def _refresh(server: Postgres, asked: Asked) -> Rows:
    rows = []
    for name in asked["handlers"]:
        row = server.handlers[name]
        due = [each.due for each in server.deliveries.values() if each.handler == name and each.state == "retrying"]
        tick, seq = row.done or (None, None)
        rows.append((name, row.attached, tick, seq, False, min(due) - server.now() if due else None))
    return rows


def _seen(server: Postgres, asked: Asked) -> Rows:
    return [(each, None) for each in words(asked["ids"]) if (each, asked["handler"]) in server.deliveries]


def _done(server: Postgres, asked: Asked) -> Rows:
    for event_id, handler in _rows(server, asked):
        server.record(event_id, handler, "done", attempts=1)
    return []


def _retry(server: Postgres, asked: Asked) -> Rows:
    columns = ("attempts", "crashes", "delays", "errors")
    for event_id, handler, attempts, crashes, delay, error in _rows(server, asked, *columns):
        due = server.now() + delay
        server.record(event_id, handler, "retrying", attempts=attempts, crashes=crashes, due=due, error=error)
    return []


def _hold(server: Postgres, asked: Asked) -> Rows:
    held = []
    for event_id, handler in _rows(server, asked):
        lease, due = server.new_id(), server.now() + asked["lease"]
        if server.record(event_id, handler, "retrying", due=due, lease=lease):
            held.append((event_id, lease))
    return held


def _renew(server: Postgres, asked: Asked) -> Rows:
    standing = []
    for event_id, handler, lease in _rows(server, asked, "leases"):
        if (row := _leased(server, event_id, handler, lease)) is not None:
            row.due = server.now() + asked["lease"]
            standing.append((lease,))
    return standing


def _standing(server: Postgres, asked: Asked) -> Rows:
    found = [(each, server.deliveries.get(each)) for each in _rows(server, asked)]
    return [(event_id, row.lease) for (event_id, _), row in found if row is not None]


def _claim(server: Postgres, asked: Asked) -> Rows:
    rows: Rows = []
    for handler, room in zip(words(asked["handlers"]), map(int, words(asked["limits"])), strict=True):
        due = [
            row
            for row in server.deliveries.values()
            if row.handler == handler
            and row.state == "retrying"
            and row.due <= server.now()
            and (asked["suspects"] or row.crashes + _died(row) < asked["suspect"])
        ]
        for row in sorted(due, key=lambda row: row.due)[:room]:
            row.attempts, row.crashes = row.attempts + (row.lease is not None and row.begun), row.crashes + _died(row)
            row.lease, row.due, row.begun = server.new_id(), server.now() + asked["lease"], False
            event = server.events[row.event_id]
            rows.append(
                (event.id, handler, event.at, row.attempts, row.crashes, row.lease, event.name, event.key,
                 event.payload, None)
            )  # fmt: skip
    return rows


def _died(row: Delivery) -> bool:
    return row.lease is not None and (row.begun or row.crashes == 0)


def _begins(server: Postgres, asked: Asked) -> Rows:
    if (row := _leased(server, asked["id"], asked["handler"], asked["lease"])) is not None:
        row.begun = True
    return []


def _finish_done(server: Postgres, asked: Asked) -> Rows:
    finished = []
    for event_id, handler, lease in _rows(server, asked, "leases"):
        if (row := _leased(server, event_id, handler, lease)) is not None:
            row.state, row.attempts, row.lease = "done", row.attempts + 1, None
            server.letters.pop((event_id, handler), None)
            finished.append((event_id, handler))
    return finished


def _finish_retry(server: Postgres, asked: Asked) -> Rows:
    finished = []
    columns = ("leases", "costs", "crashes", "delays", "errors")
    for event_id, handler, lease, cost, crash, delay, error in _rows(server, asked, *columns):
        if (row := _leased(server, event_id, handler, lease)) is not None:
            row.attempts, row.crashes, row.due = row.attempts + cost, row.crashes + crash, server.now() + delay
            row.lease, row.error = None, error or row.error
            finished.append((event_id, handler))
    return finished


def _dead(server: Postgres, asked: Asked) -> Rows:
    if server.record(asked["id"], asked["handler"], "dead", attempts=1, error=asked["error"]):
        server.letters[asked["id"], asked["handler"]] = asked["error"]
    return []


def _finish_dead(server: Postgres, asked: Asked) -> Rows:
    row = _leased(server, asked["id"], asked["handler"], asked["lease"])
    if row is None:
        return []
    row.state, row.attempts, row.lease, row.error = "dead", row.attempts + asked["cost"], None, asked["error"]
    server.letters[row.event_id, row.handler] = asked["error"]
    return [(row.event_id, row.handler)]


def _adopt(server: Postgres, asked: Asked) -> Rows:
    for event in server.events.values():
        if event.seq in asked["seqs"] and event.name == asked["event_name"]:
            server.record(event.id, asked["handler"], "retrying", due=server.now(), error=asked["error"])
    return []


def _outcome_of(server: Postgres, asked: Asked) -> Rows:
    row = server.deliveries.get((asked["id"], asked["handler"]))
    return [] if row is None else [(row.state, row.lease)]


# Runs that are not repeated


def _begin_once(server: Postgres, asked: Asked) -> Rows:
    key = asked["id"], asked["handler"]
    row = server.record(*key, "dead", attempts=1, error=asked["error"])
    if row is None:
        row = server.deliveries[key]
        if not (asked["lease"] is not None and row.lease == asked["lease"]) and not (
            row.state == "dead" and row.error == asked["error"]
        ):
            return []
        row.attempts += row.state == "retrying"
        row.state, row.lease, row.error = "dead", None, asked["error"]
    server.letters[key] = asked["error"]
    return [(asked["id"],)]


def _begun(server: Postgres, event_id: str, handler: str, beginning: str) -> Delivery | None:
    row = server.deliveries.get((event_id, handler))
    begun = row is not None and row.state == "dead" and row.error is not None and row.error.startswith(beginning)
    return row if begun else None


def _finish_once(server: Postgres, asked: Asked) -> Rows:
    for event_id, handler, beginning in _rows(server, asked, "beginnings"):
        if (row := _begun(server, event_id, handler, beginning)) is not None:
            row.state, row.error = "done", None
            server.letters.pop((event_id, handler), None)
    return []


def _fail_once(server: Postgres, asked: Asked) -> Rows:
    if (row := _begun(server, asked["id"], asked["handler"], asked["beginning"])) is not None:
        row.error = server.letters[row.event_id, row.handler] = asked["error"]
    return []


READS = ("refresh", "seen", "standing", "outcome_of")
"""Statements that commit nothing."""

STATEMENTS: dict[str, Callable[[Postgres, Asked], Rows]] = {
    "present": lambda *_: [],
    "register": _register,
    "refresh": _refresh,
    "seen": _seen,
    "done": _done,
    "retry": _retry,
    "hold": _hold,
    "renew": _renew,
    "standing": _standing,
    "claim": _claim,
    "begun": _begins,
    "finish_done": _finish_done,
    "finish_retry": _finish_retry,
    "dead": _dead,
    "finish_dead": _finish_dead,
    "adopt": _adopt,
    "outcome_of": _outcome_of,
    "begin_once": _begin_once,
    "finish_once": _finish_once,
    "fail_once": _fail_once,
}
