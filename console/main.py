"""Entry of the command line: runs the program and turns errors into one line and an exit status."""

from __future__ import annotations

import io
import os
import sys
from typing import NoReturn

_OURS = ("console", "outbox", "relay", "workers")


def main() -> NoReturn:
    """Run `outbox` with the arguments of this process. Exits 0 ok, 1 failed, 2 wrong usage, 3 partly done."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal or pipe that cannot show a character of someone's data gets a replacement, not a traceback.
            stream.reconfigure(errors="backslashreplace")
    try:
        from console.program import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in _OURS:
            raise
        sys.exit(
            f"outbox: {error.name} is not installed; the command line needs: pip install 'transactional-outbox[cli]'"
        )
    try:
        app(prog_name="outbox")
    except BrokenPipeError:
        # Whoever read our output has gone; keep the interpreter from failing on it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        from console.faults import explained

        line = explained(error)
        if line is None:
            raise
        sys.exit(f"outbox: {' '.join(line.split())}")
    sys.exit(0)


if __name__ == "__main__":
    main()
