"""Do the books agree? Pure: rows in, verdict out.

The books are what the client was told, what the log holds, what the streams carried and what the handlers left behind.
For every committed event each handler subscribed to its name must have left exactly one effect.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID


class Effect(NamedTuple):
    """What one handler did because of one event."""

    event_id: UUID
    handler: str


@dataclass(frozen=True)
class Books:
    """Everything that has to agree.

    `events` maps the committed events to their names, `handlers` an event name to its handlers. `effects` are rows as
    they stand, repeated when they stand there twice. `accepted` and `refused` are the events of requests that the API
    answered with success or rolled back, `survived` those of refused requests whose business row stands there all the
    same; `published` are the events that were seen in streams.
    """

    events: Mapping[UUID, str]
    handlers: Mapping[str, Collection[str]]
    effects: Collection[Effect]
    accepted: Collection[UUID] = ()
    refused: Collection[UUID] = ()
    survived: Collection[UUID] = ()
    published: Collection[UUID] = ()


@dataclass(frozen=True)
class Reconciliation:
    """The verdict. Each difference names its event, so that it can be looked up.

    `lost`: an effect that is missing; or, with the handler `""`, an accepted event that is not in the log, and an event
    that no handler is subscribed to.
    `duplicate`: an effect that stands there more than once, once for each time too many.
    `ghost`: an effect or stream entry of an event that was never committed, or an effect of a handler that has nothing
    to do with its event; or, with the handler `""`, anything that stayed of a request that was rolled back.
    """

    committed: int
    expected: int
    effects: int
    lost: tuple[Effect, ...] = field(repr=False)
    duplicate: tuple[Effect, ...] = field(repr=False)
    ghost: tuple[Effect, ...] = field(repr=False)

    @property
    def agrees(self) -> bool:
        """Whether nothing is lost, doubled or made up, and something happened at all."""
        return self.committed > 0 and not (self.lost or self.duplicate or self.ghost)


def reconcile(books: Books) -> Reconciliation:
    """Compare the books.

    >>> event = uuid4()
    >>> reconcile(Books({event: "signed_up"}, {"signed_up": ["greet"]}, [Effect(event, "greet")])).agrees
    True
    """
    expected = {
        Effect(event, handler) for event, name in books.events.items() for handler in books.handlers.get(name) or [""]
    }
    found = Counter(books.effects)
    refused = set(books.refused)
    lost = expected - found.keys()
    lost |= {Effect(event, "") for event in books.accepted if event not in books.events}
    ghost = found.keys() - expected
    ghost |= {Effect(event, "") for event in books.published if event not in books.events}
    ghost |= {Effect(event, "") for event in books.events if event in refused}
    ghost |= {Effect(event, "") for event in books.survived}
    return Reconciliation(
        committed=len(books.events),
        expected=len(expected),
        effects=found.total(),
        lost=tuple(sorted(lost)),
        duplicate=tuple(sorted((found - Counter(found.keys())).elements())),
        ghost=tuple(sorted(ghost)),
    )
