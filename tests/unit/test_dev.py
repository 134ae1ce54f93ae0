"""`outbox dev` without servers: what lines look like, what is watched, which servers are meant."""

from __future__ import annotations

import io
import json
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from console.dev import warnings
from console.dev.addresses import resolve
from console.dev.child import ended_by
from console.dev.folder import Folder, RunsAlreadyError
from console.dev.log import Form, Log, form_for, rendered
from console.dev.watch import changes, folders
from outbox.errors import ConfigurationError, UnusableError
from outbox.settings import Settings
from workers.loading import check_target, load_app

AT = datetime(2026, 1, 31, 12, tzinfo=UTC)


def shown(text: str, form: Form) -> str:
    return rendered("worker", text, form, level="info", at=AT)


def test_plain_lines_have_a_name_and_no_colours_of_their_own() -> None:
    assert shown("\x1b[31mred\x1b[0m", Form.PLAIN) == "worker   | red"


def test_coloured_lines_keep_their_colours_and_end_them() -> None:
    line = shown("\x1b[31mred", Form.COLOURED)
    assert line.startswith("\x1b[32mworker   |\x1b[0m ")
    assert line.endswith("\x1b[31mred\x1b[0m")


@pytest.mark.parametrize("text", ["hello", "{not json", '["a list"]', "{}x"])
def test_what_is_no_json_object_becomes_one(text: str) -> None:
    assert json.loads(shown(text, Form.JSON)) == {
        "process": "worker", "event": text, "level": "info", "timestamp": "2026-01-31T12:00:00Z",
    }  # fmt: skip


def test_json_of_the_process_itself_keeps_its_fields() -> None:
    text = '{"event": "worker.started", "level": "warning"}'
    assert json.loads(shown(text, Form.JSON)) == {"process": "worker", "event": "worker.started", "level": "warning"}


def test_only_a_terminal_is_coloured() -> None:
    assert form_for(io.StringIO(), "auto") is Form.PLAIN
    assert form_for(io.StringIO(), "json") is Form.JSON


def test_a_reader_that_is_gone_is_told_once() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    told: list[int] = []
    log = Log(Gone(), Form.PLAIN, lambda: told.append(1))
    log.say("one\ntwo")
    assert told == [1]


def test_of_postgres_warnings_and_errors_are_shown_with_their_further_lines() -> None:
    lines = [
        "LOG:  starting PostgreSQL", "\tand more", "ERROR:  syntax error", "\tat the end", "LOG:  checkpoint",
        "WARNING:  careful", "", "FATAL:  too many",
    ]  # fmt: skip
    read = warnings.Postgres()
    assert [line for text in lines if (line := read(text))] == [
        ("error", "ERROR: syntax error"), ("error", "at the end"), ("warning", "WARNING: careful"),
        ("critical", "FATAL: too many"),
    ]  # fmt: skip


def test_of_valkey_warnings_are_shown_without_their_prefix() -> None:
    assert warnings.valkey("7:M 21 Nov 2026 15:39:03.123 # Out of # memory") == ("warning", "Out of # memory")
    assert warnings.valkey("7:M 21 Nov 2026 15:39:03.123 * Ready to accept connections") is None


@pytest.mark.parametrize(("status", "words"), [(-9, "SIGKILL"), (-35, "signal 35"), (1, "itself, with status 1")])
def test_an_end_is_told_in_words(status: int, words: str) -> None:
    assert ended_by(status) == words


# Watching


def test_data_caches_and_installed_code_are_not_watched(tmp_path: Path) -> None:
    for name in ("shop/parts", ".outbox/postgres", ".venv/lib", "env/lib", "node_modules/x", "shop/__pycache__"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "env/pyvenv.cfg").touch()
    assert folders([tmp_path]) == [tmp_path, tmp_path / "shop", tmp_path / "shop/parts"]
    with pytest.raises(ConfigurationError, match="nothing to watch"):
        folders([tmp_path / "nowhere"])


def test_changes_are_noticed_in_new_folders_too_and_other_files_are_none(tmp_path: Path) -> None:
    stopping = threading.Event()
    code = tmp_path / "code.py"
    code.touch()
    seen = changes([tmp_path], stopping)
    try:
        writing = threading.Timer(0.3, lambda: ((tmp_path / "notes.txt").touch(), code.write_text("x = 1")))
        writing.start()
        assert next(seen) == {code}
        fresh = tmp_path / "fresh"
        writing = threading.Timer(0.3, lambda: (fresh.mkdir(), (fresh / "new.py").touch()))
        writing.start()
        assert next(seen) == {fresh / "new.py"}
        writing = threading.Timer(0.3, lambda: (fresh / "new.py").unlink())
        writing.start()
        assert next(seen) == {fresh / "new.py"}
    finally:
        stopping.set()


# Which servers


def settings(**given: str) -> Settings:
    return Settings(_env_file=None, **given)  # type: ignore[arg-type, call-arg]


def test_what_the_settings_do_not_name_is_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "REDIS_URL", "RELAY_DATABASE_URL", "SCHEMA", "PREFIX"):
        monkeypatch.delenv(f"OUTBOX_{name}", raising=False)
    with Folder(tmp_path) as folder:
        found = resolve(settings(relay_database_url="postgresql://elsewhere/x"), folder)
        assert (found.postgres, found.valkey) == (True, folder.last_port)
        assert found.settings.libpq_url(direct=True).startswith("postgresql://postgres@/postgres?host=")
        names = [line.partition("=")[0] for line in found.exports()]
        assert names == ["export OUTBOX_DATABASE_URL", "export OUTBOX_REDIS_URL"]

        database = resolve(settings(redis_url="redis://other:6379/0"), folder)
        assert (database.postgres, database.valkey) == (True, None)
        both = resolve(settings(redis_url="redis://other:6379/0", database_url="postgresql://other/x"), folder)
        assert (both.postgres, both.valkey, list(both.exports())) == (False, None, [])

        printed = found.settings
        back = resolve(
            settings(
                redis_url=printed.redis_url.get_secret_value(),
                database_url=printed.libpq_url().replace("postgresql://", "postgresql+psycopg://"),
            ),
            folder,
            port=7000,
        )
        assert (back.postgres, back.valkey) == (True, 7000)


def test_other_shells_are_told_of_another_schema_and_prefix(tmp_path: Path) -> None:
    with Folder(tmp_path) as folder:
        told = list(resolve(settings(OUTBOX_SCHEMA="billing", prefix="shop"), folder).exports())
    assert told[-2:] == ["export OUTBOX_SCHEMA=billing", "export OUTBOX_PREFIX=shop"]


def test_a_folder_is_held_by_one(tmp_path: Path) -> None:
    with Folder(tmp_path), pytest.raises(RunsAlreadyError, match=r"as process \d+"), Folder(tmp_path):
        pass
    with Folder(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / ".outbox").write_text("a file")
    with pytest.raises(UnusableError, match=r"\.outbox cannot be used"), Folder(tmp_path):
        pass


# The target


@pytest.mark.parametrize("target", ["nowhere:app", "json.nowhere:app", "sys.nowhere:app", "a-b:app"])
def test_a_module_that_is_not_there_is_told_as_when_it_is_loaded(target: str) -> None:
    with pytest.raises(ConfigurationError) as loading:
        load_app(target)
    with pytest.raises(ConfigurationError) as looking:
        check_target(target)
    assert str(looking.value) == str(loading.value)


def test_looking_for_a_module_does_not_run_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop_of_test").mkdir()
    for name in ("__init__", "tasks"):
        (tmp_path / f"shop_of_test/{name}.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    check_target("shop_of_test.tasks:app")
