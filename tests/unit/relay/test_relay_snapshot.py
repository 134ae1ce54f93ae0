"""`relay.snapshot`, and the arithmetic that makes a batch of what lies between two snapshots."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from relay.snapshot import NOTHING, Snapshot


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """Any snapshot that PostgreSQL could give: xmin is the lowest open transaction."""
    xmax = draw(st.integers(1, 40))
    xip = tuple(sorted(draw(st.sets(st.integers(1, xmax - 1)))) if xmax > 1 else ())
    return Snapshot(min(xip, default=xmax), xmax, xip)


@dataclass
class History:
    """A PostgreSQL of which only the transactions matter. `taken` are the snapshots it was asked for."""

    following: int = 1
    open: set[int] = field(default_factory=set)
    committed: set[int] = field(default_factory=set)
    taken: list[Snapshot] = field(default_factory=list)

    def snapshot(self) -> None:
        xip = tuple(sorted(self.open))
        self.taken.append(Snapshot(min(xip, default=self.following), self.following, xip))


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Transactions that begin, commit, roll back and overlap at will, and snapshots at any moment."""
    history = History()
    for step in draw(st.lists(st.sampled_from(["begin", "commit", "rollback", "snapshot"]), max_size=60)):
        if step == "begin":
            history.open.add(history.following)
            history.following += 1
        elif step == "snapshot":
            history.snapshot()
        elif history.open:
            ended = draw(st.sampled_from(sorted(history.open)))
            history.open.remove(ended)
            if step == "commit":
                history.committed.add(ended)
    history.snapshot()
    return history


def selects(earlier: Snapshot, later: Snapshot, xid: int) -> bool:
    """The condition of batch.sql."""
    return (earlier.xmax <= xid < later.xmax or xid in earlier.xip) and later.sees(xid)


@given(snapshots())
def test_text_reads_back_as_the_same_snapshot(snapshot: Snapshot) -> None:
    assert Snapshot.parse(str(snapshot)) == snapshot


def test_postgresql_text_is_read() -> None:
    assert Snapshot.parse("10:20:12,15") == Snapshot(10, 20, (12, 15))
    assert Snapshot.parse("795:795:") == Snapshot(795, 795)


@given(snapshots(), st.integers(1, 45))
def test_what_is_below_xmin_is_seen_and_nothing_from_xmax_on(snapshot: Snapshot, xid: int) -> None:
    if xid < snapshot.xmin:
        assert snapshot.sees(xid)
    if xid >= snapshot.xmax or xid in snapshot.xip:
        assert not snapshot.sees(xid)


def test_nothing_sees_no_transaction() -> None:
    assert not any(NOTHING.sees(xid) for xid in range(1, 100))


@given(snapshots(), snapshots(), st.integers(1, 45))
def test_a_batch_is_what_the_later_snapshot_sees_and_the_earlier_did_not(
    earlier: Snapshot, later: Snapshot, xid: int
) -> None:
    assert selects(earlier, later, xid) == (later.sees(xid) and not earlier.sees(xid))


@given(histories())
def test_every_committed_transaction_is_in_exactly_one_batch(history: History) -> None:
    ticks = [NOTHING, *history.taken]
    for xid in range(1, history.following):
        batches = [later for earlier, later in itertools.pairwise(ticks) if selects(earlier, later, xid)]
        if xid in history.committed:
            assert len(batches) == 1
    # A snapshot cannot tell who rolled back, but it never shows an open transaction.
    for xid in history.open:
        assert not any(selects(a, b, xid) for a, b in itertools.pairwise(ticks))


@given(histories())
def test_a_transaction_that_began_after_another_was_seen_is_in_a_later_batch(history: History) -> None:
    """I4 across transactions: what a snapshot of its own showed to a writer is in a batch that is not later."""
    ticks = [NOTHING, *history.taken]

    def batch(xid: int) -> int:
        return next(i for i in range(1, len(ticks)) if selects(ticks[i - 1], ticks[i], xid))

    for i, snapshot in enumerate(history.taken, start=1):
        for xid in history.committed:
            if snapshot.sees(xid):
                assert batch(xid) <= i
            else:
                assert batch(xid) > i
