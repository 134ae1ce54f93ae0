"""The dashboard, the alerts and the document, against what a relay and a worker export after real work."""

from __future__ import annotations

import asyncio
import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

import outbox
import workers
from outbox import admin
from outbox.settings import Settings
from relay.installation import Installation
from relay.monitoring import Own
from relay.service import Relay
from workers import reports
from workers.measures import Measures
from workers.monitoring import Pages

ROOT = Path(__file__).resolve().parents[2]
NAME = re.compile(r"\b(?:outbox|process)_[a-z_]+\b(?!\s*\()")
ADDED_BY_PROMETHEUS = {"instance", "job"}
"""Labels that a target's samples get when they are scraped; `process` is there for what has a supervisor."""

Exported = dict[str, list[dict[str, str]]]


async def work(settings: Settings, measures: Measures) -> Exported:
    """What is exported after events were handled, and one has died."""
    app = workers.App()

    @app.handler("paid", max_attempts=1)
    async def bill(number: int) -> None:
        if number:
            raise OSError

    engine = create_engine(settings.sqlalchemy_url())
    with Session(engine) as session:
        outbox.add_many(session, "paid", [{"number": 0}, {"number": 1}])
        session.commit()
        relay = Relay(settings)
        relaying = threading.Thread(target=relay.run, daemon=True)
        relaying.start()
        async with workers.Worker(app, settings, measures=measures) as worker:
            counts = measures.handlers["bill"].outcomes
            async with asyncio.timeout(60):
                while (counts["done"], counts["dead"]) != (1, 1):
                    await asyncio.sleep(0.01)
                # These came through the feed of a new handler.
                outbox.add(session, "paid", number=0)
                session.commit()
                while not relay.measures.published:
                    await asyncio.sleep(0.01)
            found = await asyncio.to_thread(export, relay, worker, measures, settings)
    relay.stop()
    await asyncio.to_thread(relaying.join)
    engine.dispose()
    return found


def export(relay: Relay, worker: workers.Worker, measures: Measures, settings: Settings) -> Exported:
    """The names that Prometheus sees, each with the labels of its samples: of a relay, and of a supervisor's port."""
    told = reports.Reports()
    with told.open(0) as end:
        reports.answer(Pages(worker, measures, settings), os.dup(end.fileno()))
    registries = CollectorRegistry(), CollectorRegistry()
    for collector in (Own(relay.measures, relay.wakeups), Installation(settings)):
        registries[0].register(collector)
    registries[1].register(told)
    found: Exported = {}
    for registry in registries:
        for family in text_string_to_metric_families(generate_latest(registry).decode()):
            for sample in family.samples:
                found.setdefault(sample.name, []).append(sample.labels)
    return found


def dashboard() -> Iterator[tuple[str, str]]:
    """Every expression of the dashboard, with the legend that is made of its labels."""
    for panel in json.loads((ROOT / "examples/monitoring/dashboard.json").read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"], target["legendFormat"]


def alerts() -> Iterator[tuple[str, str]]:
    """Every expression of the alerts, with the texts that quote its labels as a legend would."""
    for group in yaml.safe_load((ROOT / "examples/monitoring/alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in ("page", "ticket")
            assert set(rule["annotations"]) == {"summary", "action"}
            yield rule["expr"], re.sub(r"\{\{ \$labels\.(\w+) \}\}", r"{{\1}}", str(rule["annotations"]))


def within(expression: str, opening: int) -> str:
    """What stands in the parentheses that open there."""
    depth = 0
    for place in range(opening, len(expression)):
        depth += {"(": 1, ")": -1}.get(expression[place], 0)
        if depth == 0:
            return expression[opening:place]
    raise AssertionError(f"parentheses that do not close: {expression}")


def check(expression: str, legend: str, exported: Exported) -> None:
    """An expression names only what is exported: metrics, labels, and values of labels."""
    plain = re.sub(r"\{[^}]*\}|\b(?:by|without) \([^)]*\)", "", expression)
    names = NAME.findall(plain)
    assert names, expression
    for name in names:
        assert name in exported, (name, expression)
    for name, matchers in re.findall(r"(\w+)\{([^}]*)\}", expression):
        for label, operator, value in re.findall(r'(\w+)(=~|!=|!~|=)"([^"]*)"', matchers):
            values = {labels.get(label) for labels in exported[name]}
            for each in value.split("|"):
                assert each in values, (label, operator, each, expression)
    grouped: set[str] = set()
    for clause in re.finditer(r"\bby \(([^)]*)\) \(", expression):
        inside = NAME.findall(re.sub(r"\{[^}]*\}", "", within(expression, clause.end() - 1)))
        for label in clause[1].split(", "):
            grouped.add(label)
            for name in inside:
                assert all(label in labels for labels in exported[name]), (label, name, expression)
    known = grouped if " by (" in expression else grouped | ADDED_BY_PROMETHEUS | {"process"}
    assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= known, (legend, expression)


def documented() -> set[str]:
    text = (ROOT / "docs/telemetry.md").read_text()
    return set(re.findall(r"^\| `(outbox_\w+)` \| (?:gauge|counter|histogram) \|", text, re.MULTILINE))


def base(name: str) -> str:
    return re.sub(r"_(?:bucket|sum|count|created)$", "", name)


def test_dashboard_alerts_and_document_name_what_is_exported_after_real_work(settings: Settings) -> None:
    exported = asyncio.run(work(settings, Measures()))
    queries: list[tuple[str, str]] = [*dashboard(), *alerts()]
    assert len(queries) > 40
    # Redis tells it from version 7 on.
    exported.setdefault("outbox_group_lag", [{"stream": "s", "handler": "h"}])
    for expression, legend in queries:
        check(expression, legend, exported)
    ours = {base(name) for name in exported if name.startswith("outbox_")}
    shown = {base(name) for expression, _ in queries for name in NAME.findall(expression)}
    assert documented() == ours
    assert {name for name in shown if name.startswith("outbox_")} == ours
    [labels] = [each for each in exported["outbox_handler_dead"] if each["handler"] == "bill"]
    assert labels == {"handler": "bill", "event_name": "paid"}
    assert admin.status(settings).dead.value == 1


def test_a_query_that_names_what_is_not_exported_is_found() -> None:
    exported: Exported = {"outbox_a_total": [{"handler": "h", "outcome": "done"}]}
    check('sum by (handler) (rate(outbox_a_total{outcome="done"}[5m]))', "{{handler}}", exported)
    wrong: list[Any] = [
        ("sum(outbox_b_total)", ""),
        ("sum by (worker) (outbox_a_total)", ""),
        ('outbox_a_total{outcome="dnoe"}', ""),
        ("sum by (handler) (outbox_a_total)", "{{outcome}}"),
    ]
    for expression, legend in wrong:
        try:
            check(expression, legend, exported)
        except AssertionError:
            continue
        raise AssertionError(f"not found: {expression}")
