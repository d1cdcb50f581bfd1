"""The figures of a benchmark and their goals.

Sides take turns within one run, and a figure is the median of the rounds' ratios, so that other
load of the machine affects both sides alike. Figures of different runs can't be compared.
"""

from __future__ import annotations

import json
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent


class Figure(NamedTuple):
    """A measured figure, a value for each round, and the goal that its median has to meet."""

    what: str
    goal: str
    """As `>= 0.95`, `<= 5 s`; empty: reported only."""
    values: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None: there is none."""
        goal = re.match(r"(>=|<=) ([\d.,]+)", self.goal)
        if goal is None:
            return None
        bound = float(goal[2].replace(",", ""))
        return self.median >= bound if goal[1] == ">=" else self.median <= bound

    def cells(self) -> list[str]:
        verdict = {True: "yes", False: "**no**", None: ""}[self.met]
        spread = f"{short(min(self.values))} to {short(max(self.values))}"
        return [self.what, self.goal, f"{short(self.median)} ({spread})", verdict]


class BenchReport:
    """Collects figures; shows and writes them."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.figures: list[Figure] = []
        self.raw: dict[str, Any] = {}
        """What the figures were made of, by name: for the charts, and for who wants to look."""
        self.broken: list[str] = []
        """What must not happen, and did."""
        self.skipped: list[str] = []

    def say(self, line: str) -> None:
        print(f"  {line}", file=sys.stderr, flush=True)

    def skip(self, what: str) -> None:
        self.skipped.append(what)
        self.say(f"skipped: {what}")

    def take_turns(
        self, sides: Mapping[str, Callable[[], Any]], rounds: int | None = None
    ) -> dict[str, list[Any]]:
        """The results of each side per round. The order of the sides is reversed every round."""
        seen: dict[str, list[Any]] = {name: [] for name in sides}
        for number in range(rounds or self.rounds):
            names = list(sides)[:: -1 if number % 2 else 1]
            for name in names:
                seen[name].append(sides[name]())
            self.say(f"round {number + 1}: " + ", ".join(f"{n} {seen[n][-1]!s:.60}" for n in sides))
        return seen

    def figure(self, what: str, goal: str, values: Iterable[float]) -> None:
        self.figures.append(Figure(what, goal, list(values)))
        self.say(" | ".join(self.figures[-1].cells()))

    def ratio(self, what: str, goal: str, ours: Sequence[float], theirs: Sequence[float]) -> None:
        self.figure(what, goal, (a / b for a, b in zip(ours, theirs, strict=True)))

    def as_json(self) -> str:
        figures = [
            {
                "what": f.what,
                "goal": f.goal,
                "median": round(f.median, 4),
                "values": [round(v, 4) for v in f.values],
                "met": f.met,
            }
            for f in self.figures
        ]
        content = {**about(), "rounds": self.rounds, "figures": figures, "raw": self.raw}
        return json.dumps(content, indent=1) + "\n"

    def table(self) -> str:
        rows = [["what", "goal", f"median (min to max) of {self.rounds}", "met"]]
        rows += [["---"] * 4, *(f.cells() for f in self.figures)]
        return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def short(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 100 else f"{value:.2f}"


@cache
def about() -> dict[str, str]:
    """The machine and versions of this run. Cached, since writing figures makes the tree dirty."""
    from importlib.metadata import version

    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", cpuinfo)
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=HERE
    )
    packages = ("granian", "litestar", "asyncpg", "uvloop", "msgspec")
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "machine": f"{model[1] if model else platform.processor()}, "
        f"{cpuinfo.count('processor	')} cores, {platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": ", ".join(f"{name} {version(name)}" for name in packages),
    }
