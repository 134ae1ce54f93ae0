"""What a worker tells on its port, alone or as one of several processes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from forking import Forked, Programs
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncSession

import workers
from outbox import health
from outbox.settings import Settings
from workers.measures import Measures
from workers.monitoring import Own, Pages

ROOT = Path(__file__).resolve().parents[3]


def get(port: int, path: str) -> tuple[int, str]:
    with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


Told = Callable[..., Any]


def read(text: str) -> Told:
    """Metrics as a function that gives a sample's value by name and labels."""
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    return lambda name, **labels: samples.get((name, *sorted(labels.items())))


def scrape(port: int) -> Told:
    status, text = get(port, "/metrics")
    assert status == 200
    return read(text)


def told_by(measures: Measures) -> Told:
    registry = CollectorRegistry()
    registry.register(Own(measures))
    return read(generate_latest(registry).decode())


@pytest.fixture
def measured(work: Any, until: Any) -> Callable[..., Told]:
    """Run a worker until a condition holds, and stop it; what it tells then."""

    def run(app: workers.App, done: Callable[[], Any]) -> Told:
        async def scenario(worker: workers.Worker) -> None:
            await until(done)

        measures = Measures()
        work(app, scenario, measures=measures)
        return told_by(measures)

    return run


def outcomes(told: Told, handler: str) -> dict[str, float]:
    """Those that there were."""
    names = ("done", "retry", "snoozed", "dead", "superseded")
    counts = {name: told("outbox_worker_outcomes_total", handler=handler, outcome=name) for name in names}
    return {name: count for name, count in counts.items() if count}


def test_outcomes_durations_and_the_time_from_commit_to_done_are_told_by_handler(outbox: Any, measured: Any) -> None:
    app = workers.App()

    @app.handler("e", backoff=0.01, max_attempts=2)
    async def plain(kind: str) -> None:
        if kind == "dies":
            raise OSError

    @app.handler("e", backoff=0.01, max_attempts=2)
    async def transactional(kind: str, session: AsyncSession) -> None:
        if kind == "dies":
            raise OSError

    outbox.attach("plain", "e")
    outbox.attach("transactional", "e")
    outbox.publish("e", {"kind": "works"}, {"kind": "dies"})
    told = measured(app, lambda: (outbox.count("done"), outbox.count("dead")) == (2, 2))
    for handler in ("plain", "transactional"):
        assert outcomes(told, handler) == {"done": 1, "retry": 1, "dead": 1}
        assert told("outbox_worker_run_seconds_count", handler=handler) == 3
        assert told("outbox_worker_commit_to_done_seconds_count", handler=handler) == 1
        assert told("outbox_worker_commit_to_done_seconds_sum", handler=handler) > 0
        assert told("outbox_worker_in_flight", handler=handler) == told("outbox_worker_running", handler=handler) == 0


def test_durations_are_seconds_of_runs_and_from_the_adding_to_done(outbox: Any, measured: Any) -> None:
    app = workers.App()

    @app.handler("e")
    async def plain() -> None:
        await asyncio.sleep(0.2)

    @app.handler("e")
    async def transactional(session: AsyncSession) -> None:
        await asyncio.sleep(0.2)

    for handler in ("plain", "transactional"):
        outbox.attach(handler, "e")
    [(id, seq, at, payload)] = outbox.write("e", {})
    outbox.sql.execute("UPDATE outbox.event SET created_at = created_at - interval '30 s'")
    outbox.push("e", [(id, seq, at - 30_000_000, payload)])
    told = measured(app, lambda: outbox.count("done") == 2)
    for handler in ("plain", "transactional"):
        assert 0.2 <= told("outbox_worker_run_seconds_sum", handler=handler) < 20
        assert 30.2 <= told("outbox_worker_commit_to_done_seconds_sum", handler=handler) < 90


def test_what_is_put_off_and_what_is_dead_without_a_run_are_counted(outbox: Any, measured: Any) -> None:
    app, seen = workers.App(), []

    @app.handler("e")
    async def h() -> None:
        seen.append(1)
        if len(seen) == 1:
            raise workers.Snooze(0.01)

    outbox.attach("h", "e")
    outbox.publish("e", {})
    [(event_id, *_)] = outbox.write("e", {})
    outbox.sql.execute(
        "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts, crashes, due_at)"
        " SELECT id, 'h', created_at, 'retrying', 3, 3, now() FROM outbox.event WHERE id = %s",
        [event_id],
    )
    told = measured(app, lambda: (outbox.count("done"), outbox.count("dead")) == (1, 1))
    assert outcomes(told, "h") == {"done": 1, "snoozed": 1, "dead": 1}
    assert told("outbox_worker_run_seconds_count", handler="h") == 2


@pytest.mark.parametrize("kind", ["plain", "transactional"])
def test_each_event_of_a_batch_is_counted(outbox: Any, measured: Any, kind: str) -> None:
    app = workers.App()

    def answer(events: list[workers.Event]) -> list[Any]:
        return [workers.Dead("no") if event.payload["n"] == 0 else None for event in events]

    if kind == "plain":

        @app.handler("e", name="h", batch=3, batch_wait=60)
        async def plain(events: list[workers.Event]) -> list[Any]:
            return answer(events)
    else:

        @app.handler("e", name="h", batch=3, batch_wait=60)
        async def transactional(events: list[workers.Event], session: AsyncSession) -> list[Any]:
            return answer(events)

    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(3)))
    told = measured(app, lambda: (outbox.count("done"), outbox.count("dead")) == (2, 1))
    assert outcomes(told, "h") == {"done": 2, "dead": 1}
    assert told("outbox_worker_run_seconds_count", handler="h") == 1


def test_what_a_worker_holds_is_in_flight(outbox: Any, work: Any, until: Any) -> None:
    app, measures, go = workers.App(), Measures(), asyncio.Event()

    @app.handler("e", concurrency=1)
    async def h() -> None:
        await go.wait()

    outbox.attach("h", "e")
    outbox.publish("e", {})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: told_by(measures)("outbox_worker_running", handler="h") == 1)
        assert told_by(measures)("outbox_worker_in_flight", handler="h") == 1
        go.set()

    work(app, scenario, measures=measures)


def test_without_measures_nothing_is_around_a_run_or_a_batch_of_outcomes(outbox: Any, work: Any) -> None:
    app = workers.App()

    @app.handler("e")
    async def h() -> None: ...

    async def scenario(worker: workers.Worker) -> None:
        assert worker._lanes["h"]._run == worker._executions[0].run
        assert worker._recorder._measures is None

    work(app, scenario)


def test_a_worker_is_ready_once_it_has_begun_and_until_it_stops(settings: Settings) -> None:
    app, measures = workers.App(), Measures()

    @app.handler("e")
    async def h() -> None: ...

    async def scenario() -> None:
        worker = workers.Worker(app, settings, measures=measures)
        with Pages(worker, measures, settings).serve("127.0.0.1", 0) as port:

            async def ask(path: str) -> tuple[int, str]:
                return await asyncio.to_thread(get, port, path)

            servers = "postgresql: ok\nschema: ok\nredis: ok\n"
            assert await ask("/readyz") == (503, f"{servers}worker: has not begun\n")
            assert await ask("/livez") == (200, "loop: ok\n")
            await worker.start()
            assert await ask("/readyz") == (200, f"{servers}worker: ok\n")
            worker.request_stop()
            assert await ask("/readyz") == (503, f"{servers}worker: stops\n")
            await worker.stop()
            assert "process_cpu_seconds_total" in (await ask("/metrics"))[1]

    asyncio.run(scenario())


def test_a_worker_whose_loop_is_blocked_does_not_live_until_it_turns_again(
    outbox: Any, work: Any, wait_for: Callable[..., Any], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "STUCK_AFTER", 1.5)
    app, measures, gate = workers.App(), Measures(), threading.Event()

    @app.handler("e")
    async def h() -> None:
        gate.wait(60)

    outbox.attach("h", "e")

    async def scenario(worker: workers.Worker) -> None:
        with Pages(worker, measures, settings).serve("127.0.0.1", 0) as port:

            def watch() -> None:
                wait_for(lambda: get(port, "/livez") == (200, "loop: ok\n"))
                outbox.publish("e", {})
                try:
                    wait_for(lambda: get(port, "/livez")[0] == 503)
                    assert re.search(r"loop: has not turned for \d+ s", get(port, "/livez")[1])
                finally:
                    gate.set()
                wait_for(lambda: get(port, "/livez") == (200, "loop: ok\n"))

            await asyncio.to_thread(watch)

    work(app, scenario, measures=measures)


def test_a_worker_that_waits_for_postgresql_lives_and_is_not_ready(settings: Settings, tmp_path: Path) -> None:
    app, measures = workers.App(), Measures()

    @app.handler("e")
    async def h() -> None: ...

    away = settings.model_copy(update={"database_url": SecretStr(f"postgresql:///shop?host={tmp_path}")})

    async def scenario() -> None:
        worker = workers.Worker(app, away, measures=measures)
        pages = Pages(worker, measures, away)
        running = asyncio.create_task(worker.run())
        before = worker.pulse._beaten
        async with asyncio.timeout(60):
            while worker.pulse._beaten <= before + 0.5:
                await asyncio.sleep(0.01)
        assert pages.live() == {"loop": None}
        assert "cannot reach PostgreSQL" in str(pages.ready()["postgresql"])
        running.cancel()
        await asyncio.wait({running})

    asyncio.run(scenario())


TASKS = """
from workers import App
app = App()

@app.handler("e")
async def h(): ...
"""


@pytest.fixture
def supervised(programs: Programs, tmp_path: Path, settings: Settings) -> Iterator[Callable[[], tuple[int, Forked]]]:
    """Two processes at work under a supervisor that serves their metrics: the port, and the supervisor."""
    started: list[Forked] = []
    (tmp_path / "tasks.py").write_text(TASKS)
    log = tmp_path / "log"
    variables = {
        "OUTBOX_DATABASE_URL": settings.libpq_url(),
        "OUTBOX_REDIS_URL": settings.redis_url.get_secret_value(),
        "OUTBOX_LOG_FORMAT": "json",
        "OUTBOX_METRICS_PORT": "0",
        "PYTHONPATH": str(ROOT),
    }

    def start() -> tuple[int, Forked]:
        arguments = ["-P", "-m", "console.main", "worker", "tasks:app", "--processes", "2"]
        with log.open("wb") as out:
            started.append(programs.start(arguments, cwd=tmp_path, env=os.environ | variables, stdout=out, stderr=out))
        deadline = time.monotonic() + 60
        while log.read_text().count("worker.started") < 2:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        [line] = re.findall(r"^.*monitor\.listening.*$", log.read_text(), re.MULTILINE)
        return json.loads(line)["port"], started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_supervisor_tells_of_all_its_processes_on_one_port(
    outbox: Any, supervised: Callable[..., Any], wait_for: Callable[..., Any]
) -> None:
    outbox.attach("h", "e")
    port, supervisor = supervised()
    wait_for(lambda: get(port, "/readyz")[0] == 200, what="both being ready")
    assert "process 1, worker: ok" in get(port, "/readyz")[1]
    assert get(port, "/livez") == (200, "process 0, loop: ok\nprocess 1, loop: ok\n")
    outbox.publish("e", *({} for _ in range(10)))

    def done() -> float:
        told = scrape(port)
        labels = {"handler": "h", "outcome": "done"}
        return sum(told("outbox_worker_outcomes_total", process=each, **labels) or 0 for each in ("0", "1"))

    wait_for(lambda: done() == 10, what="ten outcomes")
    supervisor.send_signal(signal.SIGTERM)
    assert supervisor.wait(60) == 0


def test_a_single_process_serves_the_port_itself(
    start: Callable[..., Any], wait_for: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTBOX_METRICS_PORT", "0")
    worker = start(TASKS)
    wait_for(lambda: "monitor.listening" in worker.output(), what="the port")
    [port] = re.findall(r"event=monitor\.listening.* port=(\d+)", worker.output())
    wait_for(lambda: get(int(port), "/readyz")[0] == 200, what="being ready")
    assert scrape(int(port))("outbox_worker_in_flight", handler="h") == 0
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
