"""PostgreSQL snapshots as values: which transactions one saw. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Snapshot:
    """A `pg_snapshot`: transactions below `xmin` are seen, none from `xmax` on, between them those not in `xip`.

    >>> s = Snapshot.parse("10:20:12,15")
    >>> s.sees(11), s.sees(12), s.sees(20)
    (True, False, False)
    """

    xmin: int
    xmax: int
    xip: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Snapshot:
        """Read PostgreSQL's text form, `xmin:xmax:xip,xip`."""
        xmin, xmax, xip = text.split(":")
        return cls(int(xmin), int(xmax), tuple(int(x) for x in xip.split(",")) if xip else ())

    def __str__(self) -> str:
        return f"{self.xmin}:{self.xmax}:{','.join(map(str, self.xip))}"

    def sees(self, xid: int) -> bool:
        """Whether what transaction `xid` wrote was visible."""
        return xid < self.xmax and xid not in self.xip


NOTHING = Snapshot(1, 1)
"""Sees no transaction: what stands before the oldest tick."""
