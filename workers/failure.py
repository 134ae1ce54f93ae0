"""An exception as text that may be kept: bounded, storable, without secrets. Pure.

A *description* is one error in one text: its type, its message, where it was raised. A *trace* is what a person needs
who was not there: the error with its causes, each with the innermost frames. Passwords and keys in URLs are masked, and
of a validation error neither shows the values that were validated.
"""

from __future__ import annotations

import os
import re
import traceback
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType

from pydantic import ValidationError

from workers.errors import ChildTraceback

MAX_ERROR_LENGTH = 4000
"""Characters of an error that are kept."""
MAX_TRACE_LENGTH = 12_000
"""Characters of a trace that are kept."""
MAX_FRAMES = 12
"""Frames of one exception that are kept: the innermost."""
MAX_CHAIN = 6
"""Exceptions of one trace that are kept: the error, and its nearest causes or members."""
MAX_PROBLEMS = 10
"""Problems of one validation error that are named."""

_OURS = str(Path(__file__).parent) + os.sep
_HIDDEN = "***"

# Whatever stands between the first colon and the last @: who forgot to encode a password may have an @ in it.
_USERINFO = re.compile(r"""(://[^\s:/@'"<>]{0,200}:)[^\s'"<>]{1,500}@""")
_QUERY = re.compile(
    r"""(?i)([?&][\w.-]{0,40}(?:password|passwd|pwd|secret|token|key|signature|sig|credential)s?=)[^&\s'"<>#]{1,2000}"""
)
_INPUT = re.compile(r"(?s)(?<=input_value=).*?(?=, input_type=|\Z)")


def describe(error: BaseException) -> str:
    """An error as one text for people: its type, its message, and where the handler raised it."""
    if isinstance(error.__cause__, ChildTraceback):
        return clean(str(error.__cause__))
    text = _headline(error)
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        if not _ours(frame):
            place = f" (at {Path(frame.f_code.co_filename).name}:{line} in {frame.f_code.co_name})"
    return clean(text, MAX_ERROR_LENGTH - len(place)) + place


def trace(error: BaseException) -> str:
    """An error with its causes and where each was raised, as Python prints them, the error itself last.

    >>> print(trace(error))
    ConnectionRefusedError: [Errno 111] refused
      File "/srv/shop/mail.py", line 12, in connect
        sock.connect(address)
    <BLANKLINE>
    which led to
    MailError: cannot send
      File "/srv/shop/tasks.py", line 40, in send_email
        mail.send(user.email)
    """
    if isinstance(error.__cause__, ChildTraceback):
        return clean(error.__cause__.trace or str(error.__cause__), MAX_TRACE_LENGTH)
    parts = ["".join(_section(each)).rstrip() for each in _chain(error)]
    # The error itself is whole; of what is too long the earliest causes go first.
    kept: list[str] = []
    left = MAX_TRACE_LENGTH
    for part in reversed(parts):
        text = clean(part, left)
        kept.append(text)
        left -= len(text) + len(_LED_TO)
        if left < 200:
            break
    return _LED_TO.join(reversed(kept))


_LED_TO = "\n\nwhich led to\n"


def clean(text: str, limit: int = MAX_ERROR_LENGTH) -> str:
    """`text` as it may be stored: no secrets of URLs, no NUL, no lone surrogates, not too long."""
    text = _without_inputs(masked(text[: 4 * limit + 4000]))
    text = text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= limit else text[: limit - 1] + "…"


def masked(text: str) -> str:
    """`text` without the passwords and keys of the URLs in it.

    >>> masked("no route to redis://shop:s3cret@db/0?token=abc")
    'no route to redis://shop:***@db/0?token=***'
    """
    if "://" in text:
        text = _USERINFO.sub(rf"\1{_HIDDEN}@", text)
    return _QUERY.sub(rf"\1{_HIDDEN}", text) if "=" in text else text


def _without_inputs(text: str) -> str:
    """`text` without the values in the message of a validation error, which may be part of another error's."""
    return _INPUT.sub(_HIDDEN, text) if "input_value=" in text else text


def _headline(error: BaseException) -> str:
    name = type(error).__name__
    try:
        message = _problems(error) if isinstance(error, ValidationError) else str(error)
    except Exception:
        message = "(its message cannot be shown)"
    return f"{name}: {message}" if message else name


def _problems(error: ValidationError) -> str:
    """What pydantic found, without what it looked at."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    named = []
    for problem in found[:MAX_PROBLEMS]:
        place = ".".join(str(part) for part in problem["loc"])
        named.append(f"{place}: {problem['msg']}" if place else problem["msg"])
    if len(found) > MAX_PROBLEMS:
        named.append(f"and {len(found) - MAX_PROBLEMS} more")
    return f"{error.title}: {'; '.join(named)}"


def _section(error: BaseException) -> Iterator[str]:
    yield f"{clean(_headline(error), MAX_ERROR_LENGTH)}\n"
    yield from traceback.format_list(_innermost(error.__traceback__, MAX_FRAMES))


def _innermost(first: TracebackType | None, count: int) -> list[traceback.FrameSummary]:
    """The last frames, without the worker's own around them."""
    frames = deque(traceback.walk_tb(first), maxlen=count)
    while frames and _ours(frames[0][0]):
        frames.popleft()
    return list(traceback.StackSummary.extract(iter(frames)))


def _ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_OURS)


def _chain(error: BaseException) -> list[BaseException]:
    """What led to an error, the earliest first, its causes and the members of a group; the error itself is the last."""
    found: dict[int, BaseException] = {}
    waiting = deque([error])
    while waiting and len(found) < MAX_CHAIN:
        each = waiting.popleft()
        if id(each) in found:
            continue
        found[id(each)] = each
        cause = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
        if cause is not None:
            waiting.append(cause)
        if isinstance(each, BaseExceptionGroup):
            waiting.extend(each.exceptions)
    return list(reversed(found.values()))
