"""A `send` span for each batch that goes to Redis, linked with the creation of its events. Without an SDK, nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from outbox import spans
from relay import wire
from relay.tick import Chunk

HEADERS = 4
"""Where the headers stand among an entry's arguments."""


@contextmanager
def sending(tracer: Any | None, chunks: Iterator[Chunk]) -> Iterator[Iterator[Chunk]]:
    """Give the chunks of one batch, within a span that ends with the context. A batch without events has none."""
    if tracer is None:
        yield chunks
        return
    batch = _Batch(tracer.start_span("send", kind=spans.kind("PRODUCER")))
    try:
        yield batch.watch(chunks)
    except BaseException as error:
        spans.failed(batch.span, error)
        raise
    finally:
        batch.end()


class _Batch:
    def __init__(self, span: Any) -> None:
        self.span = span
        self._events = self._links = 0
        self._names: set[str] = set()

    def watch(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        for chunk in chunks:
            self._events += chunk.rows
            for name, entries in chunk.parts.items():
                self._names.add(name.decode())
                self._link(entries)
            yield chunk

    def _link(self, entries: wire.Entries) -> None:
        room = spans.MOST_LINKS - self._links
        if room > 0:
            few = wire.Entries(entries.ids[:room], entries.packed[:room])
            found = [json.loads(headers) for headers in wire.values(few)[HEADERS :: wire.ARGUMENTS] if headers]
            self._links += sum(spans.link(self.span, headers) for headers in found)

    def end(self) -> None:
        if not self._events:
            # What is not ended is shown nowhere.
            return
        [destination] = self._names if len(self._names) == 1 else [None]
        if destination is not None:
            self.span.update_name(f"send {destination}")
        self.span.set_attributes(spans.attributes("send", destination=destination, count=self._events))
        self.span.end()
