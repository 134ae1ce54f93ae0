"""Where Redis is: one server, Sentinels that know the primary, or the nodes of a cluster. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

DEFAULT_PORT = 6379
DEFAULT_SENTINEL_PORT = 26379


class Kind(Enum):
    """What answers at an address."""

    SERVER = ""
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


@dataclass(frozen=True)
class Address:
    """A Redis URL, taken apart. `str()` of it is fit for logs: it holds no password and no option.

    >>> address = parse("rediss+sentinel://app:secret@one,two:5000/orders/2?ssl_ca_certs=/ca.pem")
    >>> address.hosts, address.service
    ((('one', 26379), ('two', 5000)), 'orders')
    >>> address.url
    'rediss://app:secret@one:26379/2?ssl_ca_certs=/ca.pem'
    >>> str(address)
    'rediss+sentinel://app:***@one:26379,two:5000/orders/2'
    """

    kind: Kind
    url: str = field(repr=False)
    """The address of one server as redis-py reads it, with credentials, TLS, database and options. For Sentinel and
    cluster its host is the first one, and says nothing more."""
    hosts: tuple[tuple[str, int], ...] = ()
    """Sentinels, or nodes of a cluster."""
    service: str = ""
    """How the Sentinels call the servers that they watch."""
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)
    """Who the Sentinels think we are, if they ask."""

    def __str__(self) -> str:
        parts = urlsplit(self.url)
        credentials, at, place = parts.netloc.rpartition("@")
        user, colon, _ = credentials.partition(":")
        who = f"{user}{':***' if colon else ''}{at}"
        if self.kind is Kind.SERVER:
            return f"{parts.scheme}://{who}{place}{parts.path}"
        place = ",".join(map(_netloc, self.hosts))
        service = f"/{self.service}" if self.service else ""
        return f"{parts.scheme}+{self.kind.value}://{who}{place}{service}{parts.path}"


def parse(url: str) -> Address:
    """Take a Redis URL apart. Raises `ValueError`, which quotes nothing of it.

    `redis://`, `rediss://` and `unix://` are redis-py's own; `+sentinel` and `+cluster` take several hosts.
    """
    scheme, separator, _ = url.partition("://")
    transport, _, word = scheme.partition("+")
    if not separator or transport not in ("redis", "rediss", "unix") or (word and transport == "unix"):
        raise ValueError("the scheme must be redis, rediss or unix, the first two also with +sentinel or +cluster")
    try:
        kind = Kind(word)
    except ValueError:
        raise ValueError("the scheme must end with +sentinel or +cluster, or with neither") from None
    if kind is Kind.SERVER:
        _port(url)
        return Address(kind, url)
    # Not by `urlsplit`: some versions of Python refuse several hosts of which one is an IPv6 address.
    rest = url.partition("://")[2]
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    parts = urlsplit(rest.removeprefix(authority))
    credentials, at, place = authority.rpartition("@")
    port = DEFAULT_SENTINEL_PORT if kind is Kind.SENTINEL else DEFAULT_PORT
    hosts = tuple(_host(each, port) for each in place.split(","))
    path = [unquote(each) for each in parts.path.split("/") if each]
    options = dict(parse_qsl(parts.query))
    service, user, password = "", None, None
    if kind is Kind.SENTINEL:
        if not path:
            raise ValueError("after the Sentinels must follow the name of the service, as in /mymaster")
        service = path.pop(0)
        user, password = options.pop("sentinel_username", None), options.pop("sentinel_password", None)
    database = path.pop(0) if path else options.pop("db", "")
    if path or (database and not database.isdigit()):
        raise ValueError("the URL must end with a database's number, or with none")
    if kind is Kind.CLUSTER and database.strip("0"):
        raise ValueError("the database of a cluster must be 0")
    first = credentials + at + _netloc(hosts[0])
    query = urlencode(options, safe="/")
    one = urlunsplit((transport, first, f"/{database}" if database.strip("0") else "", query, ""))
    return Address(kind, one, hosts, service, user, password)


def _host(text: str, default: int) -> tuple[str, int]:
    port = _port(f"//{text}")
    name = urlsplit(f"//{text}").hostname
    if not name:
        raise ValueError("a host is missing")
    return name, port or default


def _port(url: str) -> int | None:
    try:
        return urlsplit(url).port
    except ValueError:
        # Its message would quote what stands there: a part of a password, if that holds a slash.
        raise ValueError("a port must be a number up to 65535") from None


def _netloc(host: tuple[str, int]) -> str:
    name, port = host
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
