from __future__ import annotations

import os
import struct
import threading
import time
from array import array
from pathlib import Path

import pytest

from benchmarks import laggard, processor
from benchmarks.__main__ import parser
from benchmarks.laggard import Course, Look, Starts
from benchmarks.processor import Spent

SECOND = 1_000_000_000


def starts(delays_ms: dict[float, int]) -> Starts:
    """One event for each moment in seconds, started so many milliseconds later."""
    sent = [round(at * SECOND) for at in delays_ms]
    started = [at + delay * 1_000_000 for at, delay in zip(sent, delays_ms.values(), strict=True)]
    return Starts(array("q", range(len(sent))), array("q", sent), array("q", started))


def course() -> Course:
    """Slow from 10 s to 20 s and fed from 14 s on, attached again at 30 s; Redis grows by 2 MiB while fed."""
    looks = [
        Look(at * SECOND, at * 4000, redis, attached)
        for at, redis, attached in [
            (5, 1.0, True), (13, 50.0, True), (14, 10.0, False), (15, 10.0, False), (17, 12.0, False),
            (19, 12.0, False), (25, 8.0, False), (30, 4.0, True), (40, 3.0, True),
        ]
    ]  # fmt: skip
    noted = starts({1: 900, 5: 10, 12: 20, 22: 40, 32: 10})
    return Course(0, 10 * SECOND, 20 * SECOND, 30 * SECOND, looks, noted, 5, 60.0, Spent(1.0, 10.0))


def test_each_phase_has_the_delays_of_what_was_sent_in_it() -> None:
    found = {figure.key: figure.value for figure in laggard.report(course()).figures}
    assert found["ratio_p50_lagging"] == 2.0
    assert found["ratio_p99_catching_up"] == 4.0


def test_redis_is_judged_by_its_peak_and_by_whether_it_grows_while_the_laggard_is_fed() -> None:
    found = {figure.key: figure for figure in laggard.report(course()).figures}
    assert (found["redis_peak_mib"].value, found["redis_peak_mib"].met) == (50.0, True)
    assert (found["redis_drift_mib"].value, found["redis_drift_mib"].met) == (2.0, False)
    assert found["redis_end_mib"].value == 3.0


def test_the_sweep_is_counted_for_one_handler() -> None:
    found = {figure.key: figure.value for figure in laggard.report(course()).figures}
    assert found["ratio_sweep_steady"] == 0.05


def test_what_handlers_note_is_read_back(tmp_path: Path) -> None:
    file = tmp_path / "starts"
    file.write_bytes(struct.pack("=qqq", 7, 1_000_000, 4_000_000) + struct.pack("=qqq", 8, 2_000_000, 3_000_000))
    found = Starts.read(file)
    assert list(found.numbers) == [7, 8]
    assert found.delays(0, 2_000_000) == [3.0]


def test_fewer_events_than_fill_a_stream_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["laggard", "--events", "100000"])
    assert "at least 150,000" in capsys.readouterr().err


def test_promises_are_kept_or_the_exit_status_says_so() -> None:
    assert parser().parse_args(["laggard"]).strict
    assert parser().parse_args(["memory"]).strict


def test_processor_time_is_read_for_a_process_and_for_a_thread_by_its_name() -> None:
    busy, ready = threading.Event(), threading.Event()

    def spin() -> None:
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text("spinning")
        until = time.thread_time() + 0.05
        while time.thread_time() < until:
            pass
        ready.set()
        busy.wait()

    thread = threading.Thread(target=spin)
    thread.start()
    ready.wait()
    try:
        spent = processor.thread_seconds(os.getpid(), "spinning")
        assert 0.03 <= spent <= processor.process_seconds(os.getpid())
        assert processor.thread_seconds(os.getpid(), "nobody") == 0
    finally:
        busy.set()
        thread.join()
