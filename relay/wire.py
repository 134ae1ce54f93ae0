"""Stream entries in the form in which Redis reads them, so that each value is copied once on its way from PostgreSQL.

The protocol is RESP2 (https://redis.io/docs/latest/develop/reference/protocol-spec/): a command is an array of byte
strings, each behind its length.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from outbox.position import Position

ARGUMENTS = 6
"""Arguments per entry: stream id, outbox id, key, payload, headers, at."""

ENTRY = b"$%d\r\n%b\r\n" * ARGUMENTS
"""Format of an entry's arguments, each as its length and itself."""


@dataclass(slots=True)
class Entries:
    """Entries for one stream in order of their ids: the ids, and the same entries packed with `ENTRY`."""

    ids: list[bytes] = field(default_factory=list)
    packed: list[bytes] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(map(len, self.packed))

    @property
    def final(self) -> bytes:
        """The last id."""
        return self.ids[-1]

    def after(self, position: Position) -> Entries:
        """Those behind a position."""
        # Ids rise, and nearly always all or nothing remains.
        if not self.ids or Position.parse(self.ids[0]) > position:
            return self
        done = sum(Position.parse(number) <= position for number in self.ids)
        return Entries(self.ids[done:], self.packed[done:])


def evalsha(sha: str, key: str, arguments: tuple[bytes, ...], entries: Entries) -> bytes:
    """A call of a script with one key, some arguments of its own, and entries."""
    head = (b"EVALSHA", sha.encode(), b"1", key.encode(), *arguments)
    count = len(head) + ARGUMENTS * len(entries)
    return b"".join((b"*%d\r\n" % count, *(b"$%d\r\n%b\r\n" % (len(part), part) for part in head), *entries.packed))


def values(entries: Entries) -> list[bytes]:
    """The arguments that are packed in entries, for a client that packs them itself."""
    found: list[bytes] = []
    for packed in entries.packed:
        start = 0
        while start < len(packed):
            begin = packed.index(b"\r\n", start) + 2
            end = begin + int(packed[start + 1 : begin - 2])
            found.append(packed[begin:end])
            start = end + 2
    return found
