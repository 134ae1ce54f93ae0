"""What `import outbox` brings into a web process."""

from __future__ import annotations

import subprocess
import sys

import pytest

import outbox
from outbox import errors

WRITE = """
import sys, dataclasses
import outbox
from sqlalchemy.orm import Session
outbox.add(Session(object()), "a", number=1)
heavy = {"redis", "relay", "workers", "console", "pydantic", "structlog", "typer", "rich", "psycopg", "opentelemetry"}
heavy |= {"outbox_testing", "alembic", "tenacity", "anyio", "fastapi", "dotenv", "sqlalchemy.ext.asyncio"}
heavy |= {"outbox.settings", "outbox.admin", "outbox.migrations", "outbox.testing", "outbox.database"}
print(sorted(heavy & set(sys.modules)))
"""


def python(program: str, **environment: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_and_adding_loads_neither_redis_nor_the_relay_nor_the_workers() -> None:
    assert python(WRITE) == "[]"


def test_asking_for_an_event_s_status_loads_neither_redis_nor_the_relay_nor_the_workers() -> None:
    program = "import sys, outbox; outbox.status; print({'redis', 'relay', 'workers', 'console'} & set(sys.modules))"
    assert python(program) == "set()"


@pytest.mark.parametrize("program", ["import relay.service", "import outbox.admin, outbox.settings, console.program"])
def test_the_relay_and_the_commands_that_look_load_no_sqlalchemy(program: str) -> None:
    assert python(f"import sys; {program}; print('sqlalchemy' in sys.modules)") == "False"


def test_a_child_process_of_a_worker_loads_neither_servers_clients_nor_sqlalchemy() -> None:
    loads = "import sys, workers.child; from workers import App, Depends"
    heavy = "{'sqlalchemy', 'psycopg', 'redis', 'pydantic_settings', 'relay', 'console'}"
    assert python(f"{loads}; print(sorted({heavy} & sys.modules.keys()))") == "[]"


def test_the_schema_is_named_by_the_environment() -> None:
    show = "import outbox; print(outbox.metadata.schema, outbox.insert('a').table.fullname)"
    assert python(show, OUTBOX_SCHEMA="shop_outbox") == "shop_outbox shop_outbox.event"
    assert python(show, OUTBOX_SCHEMA="") == "outbox outbox.event"


def test_every_public_name_exists_and_others_do_not() -> None:
    for name in outbox.__all__:
        assert getattr(outbox, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        outbox.nonsense  # noqa: B018


def test_every_error_has_one_root() -> None:
    found = [each for each in vars(errors).values() if isinstance(each, type)]
    assert all(issubclass(each, outbox.OutboxError) for each in found)
