import pytest

from outbox import names
from outbox.errors import ConfigurationError, PayloadError
from outbox.position import Position


@pytest.mark.parametrize("name", ["a", "send_email", "shop.order:paid/v2", "A-1", "x" * 128])
def test_a_plain_name_is_accepted(name: str) -> None:
    assert names.check_name(name) == name


@pytest.mark.parametrize("name", ["", "1a", "a b", "a{b}", "ä", "a\n", "x" * 129, None, 7, b"a"])
def test_any_other_name_is_refused_with_advice(name: object) -> None:
    with pytest.raises(PayloadError, match="event name"):
        names.check_name(name)


@pytest.mark.parametrize("schema", ["", "Outbox", "a-b", 'a"b', "1a", "x" * 41, "a;b"])
def test_a_schema_that_would_need_quoting_is_refused(schema: str) -> None:
    with pytest.raises(ConfigurationError):
        names.check_schema(schema)


@pytest.mark.parametrize("schema", ["order", "user", "pg_mine", "public", "information_schema"])
def test_a_schema_that_belongs_to_postgresql_or_to_everybody_is_refused(schema: str) -> None:
    with pytest.raises(ConfigurationError, match=r"reserves it|of its own"):
        names.check_schema(schema)


def test_a_handler_s_catch_up_stream_shares_the_cluster_slot_of_its_event() -> None:
    tag = "{order.paid}"
    assert tag in names.stream_key("outbox", "order.paid")
    assert tag in names.catch_up_key("outbox", "order.paid", "bill")


def test_lock_ids_differ_by_role_and_schema_and_fit_a_bigint() -> None:
    ids = {names.lock_id(role, schema) for role in ("relay", "migrate") for schema in ("a", "b")}
    assert len(ids) == 4
    assert all(-(2**63) <= i < 2**63 for i in ids)


def test_a_position_reads_back_from_its_stream_id() -> None:
    assert Position.parse(str(Position(5, 7))) == Position(5, 7)
    assert Position.parse(b"5-18446744073709551615").seq == 2**64 - 1
    assert Position(5, 7) < Position(5, 8) < Position(6, 0)
