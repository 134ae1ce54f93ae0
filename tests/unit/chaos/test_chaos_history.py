"""Histories are read as they were written, but for a line that a kill cut off."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.evidence import CRASHED, supervised_crashes
from tests.chaos.history import History, read
from tests.chaos.run import BOUND, Result
from tests.chaos.summary import summarize
from tests.chaos.watcher import name_of
from workers import supervisor


def test_entries_of_all_histories_come_in_the_order_of_time(tmp_path: Path) -> None:
    one, other = History(tmp_path / "writer-1.jsonl"), History(tmp_path / "writer-2.jsonl")
    one.say("intent", tx="1")
    other.say("intent", tx="2")
    one.say("ok", tx="1")
    assert [(entry["who"], entry["what"]) for entry in read(tmp_path)] == [
        ("writer-1", "intent"),
        ("writer-2", "intent"),
        ("writer-1", "ok"),
    ]


def test_a_last_line_that_was_cut_off_is_no_entry(tmp_path: Path) -> None:
    History(tmp_path / "writer-1.jsonl").say("intent", tx="1")
    with (tmp_path / "writer-1.jsonl").open("a") as file:
        file.write('{"t": 1, "wh')
    assert [entry["what"] for entry in read(tmp_path)] == ["intent"]


def test_what_a_supervisor_logs_of_a_crash_is_found(tmp_path: Path) -> None:
    (tmp_path / "worker-1.log").write_text("event=worker.started\nevent=worker.crashed status=1\n")
    assert supervised_crashes(tmp_path, ["worker-1", "worker-2"]) == ["event=worker.crashed status=1"]
    assert f'"{CRASHED}"' in Path(supervisor.__file__).read_text()


def test_a_catch_up_stream_is_named_by_its_event_and_handler() -> None:
    assert [name_of(key) for key in ("outbox:{order}", "outbox:{order}:book")] == ["order", "order:book"]


def test_runs_are_summed_up() -> None:
    good = Result(1, 12.0, events=10, faults={"kill": 2}, recovery=1.5)
    bad = Result(
        2, 12.0, events=5, faults={"kill": 1}, skipped={"failover": 1}, recovery=9.0, findings=("x",), kinds={"lost": 3}
    )
    facts = summarize([good, Result.from_json(bad.to_json())]).to_json()
    assert (facts["runs"], facts["failed"], facts["events"], facts["lost"], facts["duplicates"]) == (2, [2], 15, 3, 0)
    assert (facts["faults"], facts["skipped"]) == ({"kill": 3}, {"failover": 1})
    assert facts["longest_recovery"] == 9.0


def test_runs_that_came_to_rest_after_the_bound_are_counted() -> None:
    runs = [Result(number, 12.0, recovery=seconds) for number, seconds in enumerate((1.0, BOUND, BOUND + 0.1, 170.0))]
    assert summarize(runs).to_json()["over_bound"] == 2
