"""How the handlers of one worker share a bound on all of its runs: `total_concurrency`.

Every handler can always run one event, whatever the others do. The rest is there for all, and a slot that becomes free
goes to the handler that has waited longest for its turn. Workers without the bound have none of this.
"""

from __future__ import annotations

from workers.batch_lane import BatchLane
from workers.job import Job
from workers.lane import Lane


def allowed(running: int, capacity: int, *, free: int, idle: int) -> int:
    """How many runs a lane may have that has `running`, when `free` slots are left and `idle` lanes run nothing: for
    each of these one is kept.

    >>> allowed(5, 100, free=3, idle=2)
    6
    """
    return min(capacity, running + (1 if running == 0 else max(0, free - idle)))


class Slots:
    """The bound and the lanes that share it; `total` must be no less than the lanes."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._lanes: dict[Sharing, None] = {}
        """The one that began something last stands last."""

    def join(self, lane: Sharing) -> None:
        """Let this lane have its share."""
        self._lanes[lane] = None
        self._share()

    def began(self, lane: Sharing) -> None:
        """A run has begun."""
        del self._lanes[lane]
        self._lanes[lane] = None
        self._share()

    def ended(self) -> None:
        """A run has ended: whoever waits may begin one."""
        self._share()
        for lane in list(self._lanes):
            lane.fill()

    def _share(self) -> None:
        running = [lane.running for lane in self._lanes]
        free, idle = self._total - sum(running), running.count(0)
        for lane, count in zip(self._lanes, running, strict=True):
            lane.limit = allowed(count, lane.capacity, free=free, idle=idle)


class Sharing(Lane):
    """A lane that shares a bound."""

    _slots: Slots

    def share(self, slots: Slots) -> None:
        """Obey this bound from now on."""
        self._slots = slots
        slots.join(self)

    def fill(self) -> None:
        """Begin what may begin."""
        self._fill()

    def _begin(self, job: Job) -> None:
        super()._begin(job)
        self._slots.began(self)

    def _left(self, job: Job) -> None:
        before = self.running
        super()._left(job)
        if self.running != before:
            self._slots.ended()

    def _abandon(self, job: Job) -> None:
        super()._abandon(job)
        self._slots.ended()


class SharingBatchLane(Sharing, BatchLane):
    """A lane of batches that shares a bound: a batch is one run."""
