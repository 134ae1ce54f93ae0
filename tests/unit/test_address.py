"""Redis URLs taken apart."""

from __future__ import annotations

import pytest

from outbox.address import Kind, parse


def test_one_server_is_left_to_the_client_as_it_is() -> None:
    url = "rediss://app:s%40crt@cache:6380/2?ssl_ca_certs=/ca.pem"
    address = parse(url)
    assert (address.kind, address.url) == (Kind.SERVER, url)


def test_sentinels_have_credentials_of_their_own() -> None:
    address = parse(
        "rediss+sentinel://app:s%40crt@one,two:5000,[::1]/orders/2"
        "?ssl_ca_certs=/ca.pem&sentinel_username=watch&sentinel_password=x%26y"
    )
    assert address.kind is Kind.SENTINEL
    assert address.hosts == (("one", 26379), ("two", 5000), ("::1", 26379))
    assert address.service == "orders"
    assert (address.sentinel_username, address.sentinel_password) == ("watch", "x&y")
    assert address.url == "rediss://app:s%40crt@one:26379/2?ssl_ca_certs=/ca.pem"


def test_nodes_of_a_cluster() -> None:
    address = parse("redis+cluster://:secret@one,two:7001")
    assert address.kind is Kind.CLUSTER
    assert address.hosts == (("one", 6379), ("two", 7001))
    assert address.url == "redis://:secret@one:6379"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://app:secret@cache:6380/2?password=secret", "redis://app:***@cache:6380/2"),
        ("unix://app:secret@/run/redis.sock?password=secret", "unix://app:***@/run/redis.sock"),
        ("redis+sentinel://app:secret@one,two/orders?sentinel_password=a@secret", "redis+sentinel://app:***@one:26379,two:26379/orders"),
        ("redis+cluster://app:secret@one,two/0", "redis+cluster://app:***@one:6379,two:6379"),
    ],
)  # fmt: skip
def test_what_is_shown_holds_no_secret(url: str, shown: str) -> None:
    assert str(parse(url)) == shown
    assert "secret" not in repr(parse(url))


@pytest.mark.parametrize(
    "url",
    [
        "cache:6379",
        "http://cache",
        "redis://cache:port",
        "redis+nothing://cache",
        "unix+sentinel:///run/redis.sock/orders",
        "redis+sentinel://one,two",
        "redis+sentinel://one,,two/orders",
        "redis+sentinel://one:port/orders",
        "redis+sentinel://one/orders/two",
        "redis+cluster://one/1",
        "redis+cluster://one?db=1",
        "redis+cluster://",
    ],
)
def test_what_is_no_address_is_refused_without_being_quoted(url: str) -> None:
    with pytest.raises(ValueError, match=r"must|missing") as caught:
        parse(url.replace("://", "://app:secret@"))
    assert "secret" not in str(caught.value)
