"""Releases of the servers with holes that are known. Pure.

A small table, as it was known when this release was made: it names holes that a client, a script or a stream can reach.
What is not in it may still have others. Distributions mend holes without counting the version up.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from console.doctor.finding import Verdict, error, fine, info, warning

KNOWN_UNTIL = "November 2026"
"""When the table was last looked through."""

Release = tuple[int, ...]


@dataclass(frozen=True)
class Hole:
    """A hole, and the first release of each series without it. A series that is older than all of these and not named
    gets no fixes any more; a newer one never had it."""

    product: str
    name: str
    what: str
    mended: Mapping[Release, int]
    source: str
    since: Release = (0,)


HOLES = (
    Hole(
        "PostgreSQL",
        "CVE-2026-6473",
        "input that is stored writes past the end of memory",
        {(14,): 23, (15,): 18, (16,): 14, (17,): 10, (18,): 4},
        "https://www.postgresql.org/support/security/CVE-2026-6473/",
    ),
    Hole(
        "PostgreSQL",
        "28 holes that were mended in August 2026",
        "some of them let a database user run code on the server",
        {(14,): 24, (15,): 19, (16,): 15, (17,): 11, (18,): 6},
        "https://www.postgresql.org/support/security/",
    ),
    Hole(
        "Redis",
        "CVE-2025-49844",
        "a script runs code on the server",
        {(6, 2): 20, (7, 2): 11, (7, 4): 6, (8, 0): 4, (8, 2): 2},
        "https://nvd.nist.gov/vuln/detail/CVE-2025-49844",
    ),
    Hole(
        "Redis",
        "CVE-2025-62507",
        "XACKDEL runs code on the server",
        {(8, 2): 3},
        "https://nvd.nist.gov/vuln/detail/CVE-2025-62507",
        since=(8, 2),
    ),
    Hole(
        "Redis",
        "the releases of July 2026",
        "a stream that is restored runs code on the server",
        {(6, 2): 23, (7, 2): 15, (7, 4): 10, (8, 2): 8, (8, 4): 5, (8, 6): 5, (8, 8): 1},
        "https://github.com/redis/redis/releases",
    ),
    Hole(
        "Valkey",
        "CVE-2025-49844",
        "a script runs code on the server",
        {(7, 2): 11, (8, 0): 6, (8, 1): 4},
        "https://nvd.nist.gov/vuln/detail/CVE-2025-49844",
    ),
    Hole(
        "Valkey",
        "CVE-2026-23479",
        "a client that is unblocked is used after it was freed",
        {(7, 2): 13, (8, 0): 9, (8, 1): 7, (9, 0): 4},
        "https://github.com/valkey-io/valkey/releases/tag/9.0.4",
    ),
    Hole(
        "Valkey",
        "CVE-2026-63639",
        "a stream that is restored runs code on the server",
        {(7, 2): 14, (8, 0): 10, (8, 1): 9, (9, 0): 5, (9, 1): 1},
        "https://github.com/valkey-io/valkey/releases/tag/9.1.1",
    ),
)


def release(text: str) -> Release:
    """A version as numbers; what follows them is left out.

    >>> release("15.18 (Debian 15.18-0+deb12u1)")
    (15, 18)
    """
    return tuple(int(part) for part in re.findall(r"\d+", re.match(r"[\d.]*", text)[0]))  # type: ignore[index]


def holes(product: str, version: Release) -> list[Hole]:
    """Those of a version, the latest first."""
    length = 1 if product == "PostgreSQL" else 2
    series, rest = version[:length], (*version[length:], 0)
    return [
        hole
        for hole in reversed(HOLES)
        if hole.product == product and series >= hole.since and _open(hole, series, rest[0])
    ]


def _open(hole: Hole, series: Release, number: int) -> bool:
    if series in hole.mended:
        return number < hole.mended[series]
    return series < max(hole.mended)


def judged(product: str, text: str, oldest: Release) -> Verdict:
    """What is to be said of a server's version; `oldest` is what this release needs."""
    version = release(text)
    if not version:
        return info(f"{product} says its version is {text[:40]!r}", "look its version up")
    if version < oldest:
        return error(f"{product} {text} is older than {_dotted(oldest)}", f"upgrade to {_dotted(oldest)} or newer")
    found = holes(product, version)
    if not found:
        return fine(f"{product} {text}; no hole of it was known in {KNOWN_UNTIL}")
    [first, *others] = found
    series = version[: 1 if product == "PostgreSQL" else 2]
    mended = first.mended.get(series)
    upgrade = (
        f"upgrade to {_dotted((*series, mended))} or newer"
        if mended is not None
        else f"upgrade: no release of {_dotted(series)} mends it"
    )
    more = f" and {len(others)} more" if others else ""
    return warning(
        f"{product} {text} has {first.name}{more}, unless your distribution mended it: {first.what} ({first.source})",
        upgrade,
    )


def _dotted(version: Release) -> str:
    return ".".join(map(str, version))
