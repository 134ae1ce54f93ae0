"""Checks of PostgreSQL and of the schema in it."""

from __future__ import annotations

from datetime import UTC, datetime

from console.doctor import versions
from console.doctor.finding import Verdict, error, fine, info, named, warning, worst
from console.doctor.installation import STATEMENT_TIMEOUT, Installation
from outbox import migrations
from outbox.errors import SchemaError
from outbox.migrations.drift import Difference
from outbox.migrations.migrate import OLDEST_POSTGRESQL, applied
from outbox.migrations.roles import grants
from outbox.migrations.script import scripts
from relay.partitions import Partitions
from relay.retention import Partition, to_make

FEW_DEFAULT, MANY_DEFAULT = 1, 10_000
"""Rows in a default partition from which on it is a warning, and an error."""

MANY_TICKS = 1_000_000
"""Ticks that no healthy installation keeps: they are thinned about every minute."""

OLD_XID, OLDEST_XID = 1_000_000_000, 1_800_000_000
"""Ages of a transaction id; at 2,100 million PostgreSQL stops."""


def postgresql(installation: Installation) -> Verdict:
    """Whether it answers, and may be written."""
    with installation.reading() as connection:
        row = connection.execute("SELECT current_user, current_database(), pg_is_in_recovery()").fetchone()
    assert row is not None
    if row[2]:
        return error(f"database {row[1]} is a standby's: it can be read only", "use the primary's address")
    return fine(f"database {row[1]} answers {row[0]}")


def version(installation: Installation) -> Verdict:
    """Whether it is supported, and has known holes."""
    with installation.reading() as connection:
        row = connection.execute("SELECT current_setting('server_version')").fetchone()
    assert row is not None
    return versions.judged("PostgreSQL", row[0], (OLDEST_POSTGRESQL,))


def schema(installation: Installation) -> Verdict:
    """Whether it is what the migrations make. Raises `SchemaError` when other checks cannot read it."""
    with installation.reading() as connection:
        have = applied(connection, installation.schema)
    pending = [script.title for script in scripts(installation.schema) if script.version not in have]
    if not have:
        raise SchemaError(f"there is no outbox in schema {installation.schema!r}")
    if pending:
        raise SchemaError(f"not applied: {named(pending)}")
    try:
        found = migrations.check(installation.settings.libpq_url(), installation.schema, timeout=STATEMENT_TIMEOUT)
    except SchemaError:
        return info(
            f"migration {max(have)} is applied; what was changed by hand only a role that may create schemas can see",
            "`outbox migrate --check` as the owner",
        )
    verdicts = [_drifted(difference) for difference in found.differences]
    if found.unknown:
        verdicts.append(
            warning(f"applied by a newer release: {named(map(str, found.unknown))}", "upgrade this program")
        )
    if found.edited:
        verdicts.append(warning(f"applied from another text: {named(found.edited)}"))
    return worst(verdicts, f"migration {max(have)} is applied and nothing was changed by hand")


def _drifted(difference: Difference) -> Verdict:
    if difference.kind == "missing" and difference.thing == "trigger event.wake_relay":
        return info(
            "no trigger wakes the relay (`outbox migrate --without-trigger`): events wait for its poll, 5 s at most",
            "nothing, if transactions are prepared here; else `outbox migrate --check` shows how to get it back",
        )
    return error(str(difference)) if difference.kind == "missing" else warning(str(difference))


def roles(installation: Installation) -> Verdict:
    """Whether relays and workers at work, and whoever asks, have their grants."""
    at_work = installation.rows("roles")
    needed = [(row["role"], *grant) for row in at_work for grant in grants(row["part"], installation.schema)]
    columns = [list(column) for column in zip(*needed, strict=True)]
    names = ("roles", "privileges", "kinds", "names")
    lacking = installation.rows("lacking", dict(zip(names, columns, strict=True)))
    by_role: dict[str, list[str]] = {}
    for row in lacking:
        by_role.setdefault(row["role"], []).append(f"{row['privilege']} on {row['name']}")
    found = (error(f"role {role} lacks {named(lacks, 3)}") for role, lacks in by_role.items())
    return worst(found, f"{named(sorted({row['role'] for row in at_work}))} may do what they do")


def partitions(installation: Installation) -> Verdict:
    """Whether they are made ahead."""
    with installation.reading() as connection:
        there = Partitions(connection, installation.schema, 0).all()
    return ahead(there, datetime.now(UTC))


def ahead(there: list[Partition], now: datetime) -> Verdict:
    """Judge the partitions there are: one day may lack, which the relay makes within a minute of midnight."""
    lacking = {table: to_make(there, table, now.date()) for table in ("event", "delivery")}
    found = []
    for table, days in lacking.items():
        soon = [day for day in days if (day - now.date()).days <= 1]
        if soon:
            found.append(error(f"{table} has no partition for {named(map(str, soon))}"))
        elif len(days) > 1:
            found.append(warning(f"{table} has no partition from {days[0]} on"))
    return worst(found, "event and delivery have theirs for a week ahead")


def default_partitions(installation: Installation) -> Verdict:
    """Whether rows go where no day is."""
    found = installation.row("defaults", {"most": MANY_DEFAULT})
    verdicts = []
    for table in ("event", "delivery"):
        count = found[table]
        at_least = "at least " if count >= MANY_DEFAULT else ""
        said = f"{table}_default holds {at_least}{count:,} rows"
        if count >= MANY_DEFAULT:
            verdicts.append(error(said))
        elif count >= FEW_DEFAULT:
            verdicts.append(warning(said))
    return worst(verdicts, "they are empty")


def ticks(installation: Installation) -> Verdict:
    """Whether they are thinned."""
    found = installation.row("ticks", {"most": MANY_TICKS})
    said = f"{found['ticks']:,} ticks since {found['since']:%Y-%m-%d}"
    return warning(f"at least {said}") if found["ticks"] >= MANY_TICKS else fine(said)


def counters(installation: Installation) -> Verdict:
    """Whether numbers run out."""
    rows = installation.rows("counters")
    found = [running_out(row["name"], row["used"]) for row in rows]
    found += [wraparound(row["age"]) for row in rows[:1]]
    bad = [verdict for verdict in found if verdict is not None]
    return worst(bad, "sequences and transaction ids are far from their end")


def running_out(name: str, used: float) -> Verdict | None:
    """Judge how much of a sequence is used up."""
    if used < 0.5:
        return None
    said = f"{used:.0%} of sequence {name} is used up"
    return (error if used >= 0.9 else warning)(said)


def wraparound(age: int) -> Verdict | None:
    """Judge the age of the oldest transaction id."""
    if age < OLD_XID:
        return None
    said = f"the oldest transaction id is {age:,} transactions old, and PostgreSQL stops at 2,100,000,000"
    remedy = "end old transactions, replication slots and prepared transactions, then VACUUM (FREEZE)"
    return (error if age >= OLDEST_XID else warning)(said, remedy)
