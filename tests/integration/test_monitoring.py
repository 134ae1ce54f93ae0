"""The dashboard, the alerts and the document, against what a relay and workers export after real work."""

from __future__ import annotations

import asyncio
import json
import os
import re
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

import outbox
import workers
from outbox import admin
from outbox.settings import Settings
from relay import measures as of_relay
from relay.installation import Installation
from relay.monitoring import Own
from relay.service import Relay
from tests import promql
from tests.promql import Sample
from workers import reports
from workers.measures import Measures
from workers.monitoring import Pages

ROOT = Path(__file__).resolve().parents[2]
ADDED_BY_PROMETHEUS = {"instance", "job"}
"""Labels that a target's samples get when they are scraped; `process` is there for what has a supervisor."""

Exported = dict[str, list[dict[str, str]]]
"""The labels of every sample, by its name."""


async def work(settings: Settings, measures: Measures) -> tuple[list[Sample], list[Sample]]:
    """What is exported before any run has ended, and when one event is done, one has died and one was put off."""
    app, go = workers.App(), asyncio.Event()

    @app.handler("paid", max_attempts=1)
    async def bill(number: int) -> None:
        await go.wait()
        if number:
            raise OSError

    @app.handler("paid")
    async def mail(number: int) -> None:
        await go.wait()
        if number:
            raise OSError

    engine = create_engine(settings.sqlalchemy_url())
    with Session(engine) as session:
        outbox.add_many(session, "paid", [{"number": 0}, {"number": 1}])
        session.commit()
        relay = Relay(settings)
        relaying = threading.Thread(target=relay.run, daemon=True)
        relaying.start()
        async with workers.Worker(app, settings, measures=measures) as worker, asyncio.timeout(60):
            while not (relay.measures.leading and admin.status(settings).workers):
                await asyncio.sleep(0.01)
            before = await asyncio.to_thread(export, relay, worker, measures, settings)
            go.set()
            bills, mails = (measures.handlers[name].outcomes for name in ("bill", "mail"))
            while (bills["done"], bills["dead"], mails["done"], mails["retry"]) != (1, 1, 1, 1):
                await asyncio.sleep(0.01)
            # These came through the feeds of new handlers.
            while any(handler.state != "attached" for handler in admin.status(settings).handlers):
                await asyncio.sleep(0.01)
            outbox.add(session, "paid", number=0)
            session.commit()
            while not (relay.measures.published and bills["done"] == mails["done"] == 2 and relay.measures.listening):
                await asyncio.sleep(0.01)
            after = await asyncio.to_thread(export, relay, worker, measures, settings)
    relay.stop()
    await asyncio.to_thread(relaying.join)
    engine.dispose()
    return before, after


def export(relay: Relay, worker: workers.Worker, measures: Measures, settings: Settings) -> list[Sample]:
    """What Prometheus sees of a relay, and of a supervisor's port."""
    told = reports.Reports()
    with told.open(0) as end:
        reports.answer(Pages(worker, measures, settings), os.dup(end.fileno()))
    return scraped(Own(relay.measures, relay.wakeups), Installation(settings)) + scraped(told)


def scraped(*collectors: Any) -> list[Sample]:
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    return [
        Sample(sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    ]


def labelled(samples: Iterable[Sample]) -> Exported:
    found: Exported = {}
    for sample in samples:
        found.setdefault(sample.name, []).append(sample.labels)
    return found


def dashboard() -> Iterator[tuple[str, str]]:
    """Every expression of the dashboard, with the legend that is made of its labels."""
    for panel in json.loads((ROOT / "examples/monitoring/dashboard.json").read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"], target["legendFormat"]


def rules() -> Iterator[dict[str, Any]]:
    """Every alert."""
    for group in yaml.safe_load((ROOT / "examples/monitoring/alerts.yaml").read_text())["groups"]:
        yield from group["rules"]


def alerts() -> Iterator[tuple[str, str]]:
    """Every expression of the alerts, with the texts that quote its labels as a legend would."""
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert set(rule["annotations"]) == {"summary", "action"}
        yield rule["expr"], re.sub(r"\{\{ \$labels\.(\w+) \}\}", r"{{\1}}", str(rule["annotations"]))


def check(expression: str, legend: str, exported: Exported) -> None:
    """An expression is one, and names only what is exported: metrics, labels, and values of labels."""
    tree = promql.parse(expression)
    assert promql.selectors(tree), expression
    for selector in promql.selectors(tree):
        assert selector.name in exported, (selector.name, expression)
        for matcher in selector.matchers.matchers:
            values = {labels.get(matcher.name) for labels in exported[selector.name]}
            assert {*promql.values(matcher)} <= values, (matcher.name, expression)
    clauses = [node for node in promql.nodes(tree) if getattr(node, "modifier", None) and hasattr(node, "expr")]
    grouped = {label for clause in clauses for label in clause.modifier.labels}
    for clause in clauses:
        for selector in promql.selectors(clause):
            for label in clause.modifier.labels:
                assert all(label in labels for labels in exported[selector.name]), (label, selector.name, expression)
    known = grouped if clauses else ADDED_BY_PROMETHEUS | {"process"}
    assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= known, (legend, expression)


def documented() -> set[str]:
    text = (ROOT / "docs/telemetry.md").read_text()
    return set(re.findall(r"^\| `(outbox_\w+)` \| (?:gauge|counter|histogram) \|", text, re.MULTILINE))


def base(name: str) -> str:
    return re.sub(r"_(?:bucket|sum|count|created)$", "", name)


def firing(now: list[Sample], before: Iterable[Sample] = ()) -> dict[str, list[str]]:
    """The alerts whose expressions give something, with the handlers; how long they must is not looked at."""
    found = {rule["alert"]: promql.evaluate(promql.parse(rule["expr"]), now, before) for rule in rules()}
    return {
        alert: sorted(value for labels in vector for name, value in labels if name == "handler")
        for alert, vector in found.items()
        if vector
    }


def test_dashboard_alerts_and_document_name_what_is_exported_and_alerts_fire_when_they_should(
    settings: Settings,
) -> None:
    before, after = asyncio.run(work(settings, Measures()))
    exported = labelled(after)
    queries: list[tuple[str, str]] = [*dashboard(), *alerts()]
    assert len(queries) > 40
    # Redis tells it from version 7 on.
    exported.setdefault("outbox_group_lag", [{"stream": "s", "handler": "h"}])
    for expression, legend in queries:
        check(expression, legend, exported)
    ours = {base(name) for name in exported if name.startswith("outbox_")}
    trees = [promql.parse(expression) for expression, _ in queries]
    shown = {base(selector.name) for tree in trees for selector in promql.selectors(tree)}
    assert documented() == ours
    assert {name for name in shown if name.startswith("outbox_")} == ours
    [labels] = [each for each in exported["outbox_handler_dead"] if each["handler"] == "bill"]
    assert labels == {"handler": "bill", "event_name": "paid"}
    assert admin.status(settings).dead.value == 1

    failed = {"OutboxDeadLetters": ["bill"], "OutboxManyRetries": ["mail"]}
    assert firing(after, before) == failed
    # A handler that is new is fed for a while; nothing else is wrong then.
    assert firing(before, before).keys() <= {"OutboxHandlerFallsBehind", "OutboxRelayDoesNotListen"}

    with psycopg.connect(settings.libpq_url(), autocommit=True) as db:
        db.execute(
            "INSERT INTO outbox.event (name, payload, created_at) VALUES ('paid', '{}', now() - interval '2 min')"
        )
        db.execute("UPDATE outbox.handler SET attached = false, fed_tick = done_tick, fed_seq = done_seq")
        waiting = scraped(Installation(settings))
        admin.pause(db, "handler", "bill")
    away = settings.model_copy(update={"redis_url": SecretStr("redis://127.0.0.1:1/0")})
    installation = scraped(Installation(away))
    alone, deaf, crashed = of_relay.Measures(), of_relay.Measures(), reports.Reports()
    deaf.leading = True
    crashed.open(0).close()
    steady = scraped(crashed)
    for _ in range(4):
        crashed.crashed(0)
    unwell = firing(waiting + scraped(Own(deaf, {})))
    assert unwell == {
        "OutboxEventsWait": [],
        "OutboxHandlerUnserved": ["bill", "mail"],
        "OutboxHandlerFallsBehind": ["bill", "mail"],
        "OutboxRelayDoesNotListen": [],
    }
    seen = firing(installation + scraped(Own(alone, {})) + scraped(crashed), steady)
    assert {"OutboxNobodyLeads", "OutboxWorkerCrashes", "OutboxStateUnknown"} <= seen.keys()
    assert seen["OutboxHandlerPaused"] == ["bill"]
    assert {*failed, *unwell, *seen} == {rule["alert"] for rule in rules()}


def test_a_query_that_is_none_or_names_what_is_not_exported_is_found() -> None:
    exported: Exported = {"outbox_a_total": [{"handler": "h", "outcome": "done"}]}
    check('sum by (handler) (rate(outbox_a_total{outcome="done"}[5m]))', "{{handler}}", exported)
    wrong: list[Any] = [
        ("sum(outbox_b_total)", ""),
        ("sum by (worker) (outbox_a_total)", ""),
        ('outbox_a_total{outcome="dnoe"}', ""),
        ("sum by (handler) (outbox_a_total)", "{{outcome}}"),
        ("sum(rate(outbox_a_total))", ""),
        ("sum by (handler) (outbox_a_total", ""),
        ("rate(sum(outbox_a_total)[5m])", ""),
        ("total(outbox_a_total)", ""),
    ]
    for expression, legend in wrong:
        try:
            check(expression, legend, exported)
        except (AssertionError, ValueError):
            continue
        raise AssertionError(f"not found: {expression}")
