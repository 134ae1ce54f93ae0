"""Many chunks of several names are on their way to Redis when something happens: each stream has each event once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import SecretStr

from outbox.settings import Settings
from relay import feed, tick

pytestmark = pytest.mark.oldest

NAMES = ["made", "paid", "sent"]

CHUNKS = 10
"""Chunks that are sent before any is answered. One with the end of a block is twice as large as others."""

BLOCKS = 6
EACH = 900
"""Events of each block, one name after the other. All are more than may be on its way."""


def delete(box: Any, proxy: Any) -> None:
    """Redis loses one of the streams."""
    box.redis.delete("outbox:{paid}")


def shorten(box: Any, proxy: Any) -> None:
    """Redis loses the end of one of the streams, and the others are lost with their answers."""
    box.redis.delete("outbox:{paid}")
    proxy.mute()


def cut(box: Any, proxy: Any) -> None:
    """Nothing that was sent arrives."""
    proxy.cut()


def mute(box: Any, proxy: Any) -> None:
    """All that was sent arrives, and no answer comes back."""
    proxy.mute()


def forget(box: Any, proxy: Any) -> None:
    """Redis has never heard of the script."""
    box.redis.script_flush()


@pytest.mark.parametrize(
    ("happen", "loses"), [(delete, True), (shorten, True), (cut, False), (mute, False), (forget, False)]
)
def test_whatever_happens_to_many_chunks_of_three_names_each_stream_has_each_event_once_and_in_order(
    happen: Callable[[Any, Any], None],
    loses: bool,
    box: Any,
    settings: Settings,
    redis_server: Any,
    open_proxy: Callable[..., Any],
    start_relay: Callable[..., Any],
    wait_for: Callable[..., Any],
) -> None:
    assert CHUNKS * 1.5 * tick.PART_BYTES < feed.IN_FLIGHT
    proxy = open_proxy(redis_server.port)
    through = settings.model_copy(update={"redis_url": SecretStr(f"redis://127.0.0.1:{proxy.port}/0")})
    # The first chunk goes ahead, so that everything is connected.
    relay = start_relay(through, failpoints=f"relay.sent=stop@{CHUNKS + 1}")
    for name in NAMES:
        box.subscribe(f"on_{name}", event=name)
    add = (
        "INSERT INTO outbox.event (name, payload) SELECT (%s::text[])[1 + n %% 3], to_json(repeat('x', 100))"
        "  FROM generate_series(0, %s) AS n, generate_series(1, %s) RETURNING name, seq"
    )
    first = box.sql.execute(add, [NAMES, 2, 1]).fetchall()
    for name, seq in first:
        assert box.work_until(name, f"on_{name}", [seq]) == [seq]
    proxy.hold()
    rows = box.sql.execute(add, [NAMES, BLOCKS - 1, EACH]).fetchall()
    relay.await_pause()
    happen(box, proxy)
    proxy.release()
    relay.resume()
    for name in NAMES:
        seqs = [seq for of, seq in rows if of == name]
        assert box.work_until(name, f"on_{name}", seqs) == seqs
        box.await_attached(f"on_{name}")
    assert ("stream.lost" in relay.output()) == loses
    assert relay.output().count("handler.detached") == loses
    assert "lead_lost" not in relay.output()
    more = box.sql.execute(add, [NAMES, 2, 1]).fetchall()
    for name, seq in more:
        assert box.work_until(name, f"on_{name}", [seq]) == [seq]
    wait_for(
        lambda: box.one("SELECT bool_and(done_tick >= (SELECT max(tick) FROM outbox.stream)) FROM outbox.handler"),
        "everybody being past everything",
    )
