import pytest

from outbox.database import connect, redacted, unreachable
from outbox.errors import ConfigurationError, UnusableError
from outbox.migrations.drift import Check, Difference, compare
from outbox.migrations.migrate import check_server, printed
from outbox.migrations.roles import roles_sql
from outbox.migrations.script import scripts


def test_a_server_older_than_15_or_a_standby_is_refused_with_the_reason() -> None:
    check_server(150000, False)
    with pytest.raises(UnusableError, match=r"PostgreSQL 15 or newer is needed, this server is 14\.9"):
        check_server(140009, False)
    with pytest.raises(UnusableError, match="standby"):
        check_server(180000, True)


def test_migrations_are_numbered_without_a_gap_and_their_checksums_hold_for_any_schema() -> None:
    ours, others = scripts("outbox"), scripts("billing")
    assert [script.version for script in ours] == list(range(1, len(ours) + 1))
    assert [script.checksum for script in ours] == [script.checksum for script in others]
    assert not any("{schema}" in script.sql for script in ours)


@pytest.mark.parametrize("schema", ["a;b", 'a"b', "A", ""])
def test_a_schema_name_that_is_no_identifier_never_reaches_sql(schema: str) -> None:
    with pytest.raises(ConfigurationError):
        printed(schema)


def test_a_comparison_names_what_is_missing_unexpected_and_changed() -> None:
    differences = compare({"index a": "x", "index b": "x"}, {"index b": "y", "index c": "z"})
    assert [str(difference) for difference in differences] == [
        "missing: index a",
        "changed: index b: expected x, found y",
        "unexpected: index c",
    ]


def test_definitions_of_many_lines_are_not_shown() -> None:
    assert str(Difference("changed", "function f()", "a\nb", "c\nd")) == "changed: function f()"


def test_a_check_is_fine_only_when_nothing_was_found() -> None:
    assert Check().ok
    assert not Check(pending=("0002_x",)).ok
    assert not Check(unknown=(3,)).ok


def test_role_names_are_quoted() -> None:
    assert 'TO "we""ird";' in roles_sql(writer='we"ird')
    with pytest.raises(ConfigurationError):
        roles_sql()
    with pytest.raises(ConfigurationError):
        roles_sql(writer="a\nb")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:s3cr%zzet@db/shop",
        "postgresql://u:s3cr/et@db/shop",
        "postgresql://u:s3cr@et@db/shop",
        "postgresql://u:s3cr[et@db/shop",
        "mysql://u:s3cret@db/shop",
        "s3cret",
    ],
)
def test_a_broken_address_is_refused_without_showing_any_of_it(url: str) -> None:
    with pytest.raises(ConfigurationError, match="percent-encoded") as caught:
        connect(url)
    assert "s3cr" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_messages_about_a_server_show_where_it_is_and_no_password() -> None:
    assert (
        redacted("postgresql://u:p@h:5/d?host=/run&password=p2&port=6") == "postgresql://u:***@h:5/d?host=/run&port=6"
    )
    message = unreachable("postgresql://u:hidden@db/shop", OSError("refused"))
    assert "postgresql://u:***@db/shop" in message
    assert "hidden" not in message
