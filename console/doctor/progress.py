"""Checks of what moves: the relay, handlers, retries, dead letters."""

from __future__ import annotations

from datetime import timedelta

from console.doctor.finding import Verdict, error, fine, info, named, warning, worst
from console.doctor.installation import Installation
from console.listing import span
from outbox.admin import HandlerStatus, Status, holds

UNPUBLISHED = timedelta(seconds=30)
"""A committed event that waits for the relay for longer is stuck."""

UNSEEN = timedelta(minutes=1)
"""Workers say every ten seconds that they serve a handler."""

OVERDUE = timedelta(minutes=1)
"""A retry that is due for longer is not claimed as it should."""

MANY_RETRIES = 1_000
"""Retries of one handler that are more than a passing trouble."""

COUNTED = 10_000
"""Retries of a handler that nobody has are counted so far."""

LAST_EVENTS = 20_000
"""Events that are looked at for names without a handler."""


def relay(installation: Installation) -> Verdict:
    """Whether one leads and publishes."""
    status = installation.status()
    with installation.reading() as connection:
        paused = [hold for hold in holds(connection, schema=installation.schema) if hold.what == "relay"]
    if paused:
        said = (
            f"paused since {span(status.at - paused[0].since)} by {paused[0].actor}; {status.unpublished} events wait"
        )
        return warning(said, "`outbox resume relay`, when that is over")
    return published(status)


def published(status: Status) -> Verdict:
    """Judge the relay that leads, and what waits for it."""
    age, leader = status.unpublished_age, status.leader
    waits = "" if age is None else f"; {status.unpublished} events wait, the oldest for {span(age)}"
    if leader is None:
        return error(f"none leads{waits}")
    if age is not None and age > UNPUBLISHED:
        beat = "never" if leader.heartbeat is None else f"{span(status.at - leader.heartbeat)} ago"
        return error(
            f"{leader.name} leads and does not publish, the last time {beat}{waits}",
            "see its log: Redis may be away or refuse to write; one that hangs is replaced within 10 s of its end",
        )
    return fine(f"{leader.name} leads{waits}")


def paused(installation: Installation) -> Verdict:
    """What is held back by hand."""
    now = installation.status().at
    with installation.reading() as connection:
        found = holds(connection, schema=installation.schema)
    said = [f"{f'{hold.what} {hold.name}'.strip()} since {span(now - hold.since)} by {hold.actor}" for hold in found]
    return info(named(said)) if said else fine("nothing")


def handlers(installation: Installation) -> Verdict:
    """Whether every handler that is known is served."""
    status = installation.status()
    verdicts = (served(handler, status) for handler in status.handlers)
    known = f"{len(status.handlers)} known, all of them served" if status.handlers else "none is known yet"
    return worst((verdict for verdict in verdicts if verdict is not None), known)


def served(handler: HandlerStatus, status: Status) -> Verdict | None:
    """Judge whether somebody serves a handler."""
    silence = status.at - handler.last_seen
    if handler.workers or silence <= UNSEEN:
        return None
    said = f"no worker serves {handler.name} since {span(silence)}"
    waiting = handler.lag.likely + handler.retrying.likely
    return error(f"{said}, and {waiting:,} events wait for it") if waiting else warning(said)


def unhandled(installation: Installation) -> Verdict:
    """Whether every event has somebody it is for."""
    rows = installation.rows("unhandled", {"most": LAST_EVENTS})
    if not rows:
        return fine(f"none among the last {LAST_EVENTS:,} events")
    return warning("no handler for " + named(f"{row['name']} ({row['events']:,})" for row in rows))


def retries(installation: Installation) -> Verdict:
    """Whether retries pile up, or are nobody's."""
    status = installation.status()
    verdicts = [orphaned(row["handler"], row["retrying"]) for row in installation.rows("orphans", {"most": COUNTED})]
    verdicts += [verdict for handler in status.handlers if (verdict := retrying(handler, status)) is not None]
    return worst(verdicts, "none pile up")


def orphaned(handler: str, count: int) -> Verdict:
    """Judge the retries of a handler that has no row: no worker asks for them, and retention waits for them."""
    many = f"{count:,}{' or more' if count >= COUNTED else ''}"
    return error(
        f"{handler}: {many} retries, and nobody has that handler: they never run, and keep their partitions",
        f"`outbox forget {handler}` cancels them; or start a worker that has it",
    )


def retrying(handler: HandlerStatus, status: Status) -> Verdict | None:
    """Judge one handler's retries."""
    overdue = None if handler.overdue_since is None or handler.paused else status.at - handler.overdue_since
    if overdue is not None and overdue > OVERDUE:
        return warning(
            f"{handler.name}: {handler.retrying} retries, one is overdue for {span(overdue)}",
            "more workers, or more concurrency, for it; none at all shows under `handlers`",
        )
    # Many handlers share what is counted: then counting may stop below that.
    if handler.retrying.likely >= MANY_RETRIES or not handler.retrying.exact:
        return warning(f"{handler.name}: {handler.retrying} events are to be tried again")
    return None


def dead(installation: Installation) -> Verdict:
    """Whether there are dead letters."""
    status = installation.status()
    said = [f"{handler.name} {handler.dead}" for handler in status.handlers if handler.dead.likely]
    known = sum(handler.dead.value for handler in status.handlers)
    if status.dead.exact and status.dead.value > known:
        said.append(f"{status.dead.value - known:,} of handlers that nobody has")
    return info(f"{status.dead} dead letters: {named(said)}") if status.dead.likely else fine("no dead letters")
