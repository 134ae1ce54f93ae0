"""Fetched rows are cut into chunks of bounded size, larger with the number of event names in them."""

from __future__ import annotations

from typing import Any

import pytest

from relay import tick
from relay.catch_up import PART_BYTES

NAMES = 200


class Rows:
    """What a fetch gives: rows of one size, their event names in turn."""

    def __init__(self, count: int, names: int, payload: int) -> None:
        self.ntuples = count
        self.pgresult = self
        self._names = names
        self._payload = b"x" * payload

    def get_value(self, row: int, column: int) -> bytes:
        name = b"name%d" % (row % self._names)
        return [b"%d" % (row + 1), b"i" * 36, name, b"key", self._payload, b"", b"1795247896439054"][column]


def chunks(rows: Any, part_bytes: int = tick.PART_BYTES) -> list[tick.Chunk]:
    return list(tick.chunks(rows, 7, part_bytes))


def test_one_name_is_cut_into_calls_of_64_kib() -> None:
    found = chunks(Rows(5000, 1, 100))
    assert sum(chunk.rows for chunk in found) == 5000
    assert all(tick.PART_BYTES <= chunk.size < tick.PART_BYTES + 500 for chunk in found[:-1])


def test_many_names_share_a_chunk_so_that_their_calls_are_not_small() -> None:
    found = chunks(Rows(60_000, NAMES, 100))
    assert all(len(chunk.parts) == NAMES for chunk in found[:-1])
    assert all(tick.MOST_BYTES <= chunk.size < tick.MOST_BYTES + 500 for chunk in found[:-1])


def test_a_few_names_have_64_kib_each() -> None:
    found = chunks(Rows(5000, 3, 100))
    assert all(3 * tick.PART_BYTES <= chunk.size < 3 * tick.PART_BYTES + 500 for chunk in found[:-1])


def test_a_feed_says_how_large_its_chunks_are() -> None:
    found = chunks(Rows(20_000, 1, 100), PART_BYTES)
    assert all(PART_BYTES <= chunk.size < PART_BYTES + 500 for chunk in found[:-1])


@pytest.mark.parametrize(("payload", "rows"), [(2_000, 32), (70_000, 8), (256 << 10, 8), (1 << 20, 4), (5 << 20, 1)])
def test_large_payloads_share_a_call_up_to_the_most_that_a_chunk_may_have(payload: int, rows: int) -> None:
    assert [chunk.rows for chunk in chunks(Rows(2 * rows, 1, payload))] == [rows] * 2
