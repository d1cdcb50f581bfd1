"""`make bench`: everything that docs/reference/figures.md says, measured in one run.

    python -m bench [--quick] [--rounds N] [--seconds S] [--write] [parts...]

Parts: calls, sql, web, growth, redis; all of them by default. --quick: two rounds of one second and
small numbers, to check that everything runs. --write: replaces bench/results.json, the charts in
docs/ and the table in docs/reference/figures.md.
The exit status is 1 if something happened that must not happen on any machine: a violation, a
missing answer, a 5xx that is no refusal.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench import calls, charts, growth, redis, sql, web
from bench.report import HERE, BenchReport, about

DOCS = HERE.parent / "docs"
MARKS = ("<!-- figures: make bench BENCH=--write -->", "<!-- end of figures -->")


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("parts", nargs="*", help="calls, sql, web, growth, redis; none: all")
    options.add_argument("--quick", action="store_true", help="see that it runs")
    options.add_argument("--rounds", type=int)
    options.add_argument("--seconds", type=float, help="of a side in a round")
    options.add_argument("--write", action="store_true", help="replace the figures in the repo")
    given = options.parse_args()
    rounds = given.rounds or (2 if given.quick else 5)
    seconds = given.seconds or (1 if given.quick else 2)
    report = BenchReport(rounds)
    parts: dict[str, Callable[[], None]] = {
        "calls": lambda: calls.run(report),
        "sql": lambda: sql.run(report, seconds),
        "web": lambda: web.run(report, seconds),
        "growth": lambda: growth.run(report, seconds, quick=given.quick),
        "redis": lambda: redis.run(report, seconds),
    }
    if unknown := set(given.parts) - set(parts):
        options.error(f"there is no part {', '.join(sorted(unknown))}: it is {', '.join(parts)}")
    began = time.monotonic()
    for name in given.parts or parts:
        report.say(f"== {name}")
        parts[name]()
    show(report, time.monotonic() - began)
    if given.write:
        (HERE / "results.json").write_text(report.as_json())
        charts.draw(report.raw, DOCS / "charts")
        document(DOCS / "reference" / "figures.md", report, time.monotonic() - began)
    return 1 if report.broken else 0


def told(report: BenchReport, took_seconds: float) -> str:
    """The figures as text, and the machine and versions that they were measured with."""
    lines = [f"- {name}: {value}" for name, value in about().items()]
    lines += [f"- rounds: {report.rounds}; took {took_seconds / 60:.0f} minutes", ""]
    lines += [report.table()]
    lines += [f"\nnot measured: {line}" for line in report.skipped]
    return "\n".join(lines)


def document(page: Path, report: BenchReport, took_seconds: float) -> None:
    """Replaces the figures in a page, between the marks."""
    before, _, rest = page.read_text().partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    page.write_text(f"{before}{MARKS[0]}\n{told(report, took_seconds)}\n{MARKS[1]}{after}")


def show(report: BenchReport, took_seconds: float) -> None:
    print("\n" + told(report, took_seconds))
    for line in report.broken:
        print(f"BROKEN: {line}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
