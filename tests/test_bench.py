"""The report of `make bench`. CI checks that the measurements run."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from bench import charts, load
from bench.report import BenchReport, Figure

RAW = {
    "SQL reservations/s, commit 1 ms": {
        "hot 8": [5_000, 5_100, 4_900],
        "hot 32": [6_000, 6_100, 6_200],
        "spread 8": [5_000, 5_000, 5_000],
        "spread 32": [5_900, 5_800, 6_000],
    },
    "HTTP open load, by offered load": {
        f"{times:g}x": [
            {
                "by_status": {
                    "201": {"p50": 2.0, "p99": 8.0 * times, "p99.9": 20.0},
                    "503": {"p50": 1.0, "p99": 5.0, "p99.9": 9.0},
                }
            }
        ]
        for times in (0.2, 1, 3)
    },
    "SQL, µs of reserve by number of orders": {"10,000": [100, 110], "10,000,000": [105, 101]},
}


@pytest.mark.parametrize(
    ("goal", "values", "met"),
    [
        (">= 0.95", [0.9, 0.96, 1.2], True),
        (">= 0.95", [0.9, 0.94, 1.2], False),
        ("<= 10,000", [9_999], True),
        ("<= 5 s", [6], False),
        ("", [1], None),
    ],
)
def test_a_goal_is_met_by_the_median(goal: str, values: list[float], met: bool | None) -> None:
    assert Figure("x", goal, values).met is met


def test_sides_take_turns_and_ratios_are_of_the_same_round() -> None:
    report = BenchReport(3)
    order: list[str] = []

    def a() -> float:
        order.append("a")
        return len(order)

    def b() -> float:
        order.append("b")
        return 1

    seen = report.take_turns({"a": a, "b": b})
    assert order == ["a", "b", "b", "a", "a", "b"]
    report.ratio("a / b", ">= 1", seen["a"], seen["b"])
    assert report.figures[0].values == [1, 4, 5]
    assert "| a / b | >= 1 | 4.00 (1.00 to 5.00) | yes |" in report.table()
    written = json.loads(report.as_json())
    assert {"commit", "machine", "python", "packages", "figures", "raw"} <= set(written)


def test_charts_show_what_was_measured_on_light_and_dark_pages(tmp_path: Path) -> None:
    files = charts.draw(RAW, tmp_path)
    assert sorted(f.name for f in files) == ["clients.svg", "growth.svg", "load.svg"]
    for file in files:
        root = ElementTree.fromstring(file.read_text())
        assert root.get("role") == "img" and root.get("aria-label")
        assert "prefers-color-scheme: dark" in file.read_text()
        assert len(list(root.iter("{http://www.w3.org/2000/svg}polyline"))) >= 1
    assert charts.draw({}, tmp_path) == []  # nothing measured, nothing drawn


def test_results_that_no_load_may_cause_are_reported() -> None:
    seen = {"count": 3.0, "p99": 1.0}
    answers = load.Answers(10, 1, {201: seen, 503: seen, 500: seen, 0: seen})
    assert answers.odd == ["1 unanswered", "3 times status 500", "3 times status 0"]
    assert answers.count(201, 503) == 6
    assert load.Answers(3, 0, {201: seen}).odd == []


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler (cc)")
def test_a_rate_counts_the_time_that_a_queue_takes_after_the_end() -> None:
    """Otherwise late answers, from a queue that overload has left, would count as served."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer_late() -> None:
            connection, _ = server.accept()
            with connection:
                while connection.recv(4096):
                    time.sleep(0.05)
                    connection.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=answer_late, daemon=True).start()
        stream = load.Stream("late", 400, 1, load.reserve([1], 100))
        result = load.load(server.getsockname()[1], 0.05, stream)
    answers = result.streams["late"]
    assert answers.count(201) == answers.offered > 0
    assert result.seconds >= 0.05 * answers.offered
