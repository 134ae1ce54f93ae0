"""Taking things out of Redis by hand: what is kept for a handler. Not loaded by `import outbox`."""

from __future__ import annotations

from contextlib import suppress

import redis

from outbox.names import catch_up_key, stream_key


def remove_handler(client: redis.Redis, prefix: str, event_name: str, handler: str, *, keep_main: bool) -> None:
    """Remove a handler's group and its catch-up stream; the entries of the main stream, too, unless others read it.

    The stream itself stays: its last id says how far it was written.
    """
    main = stream_key(prefix, event_name)
    with suppress(redis.ResponseError):
        client.xgroup_destroy(main, handler)
    client.delete(catch_up_key(prefix, event_name, handler))
    if not keep_main:
        client.xtrim(main, maxlen=0, approximate=False)
