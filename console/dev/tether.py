"""`python -m console.dev.tether COMMAND …`: a command of `outbox` that ends when its standard input does.

Its parent holds the other end. Whatever becomes of the parent, the kernel closes it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import NoReturn

DEADLINE = 5.0
"""Seconds that the command has to end by itself."""


def _watch() -> None:
    while os.read(0, 1):
        pass
    ending = threading.Timer(DEADLINE, os._exit, (1,))
    ending.daemon = True
    ending.start()
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> NoReturn:
    """Run the command of this process' arguments and exit with its status."""
    from console.main import run

    threading.Thread(target=_watch, daemon=True).start()
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
