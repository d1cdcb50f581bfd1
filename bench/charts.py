"""Line charts as SVG, readable on light and on dark pages."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 720, 360
LEFT, RIGHT, TOP, BOTTOM = 72, 24, 48, 84
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #24292f }
  .title { font-size: 15px; font-weight: 600 }
  .axis { stroke: #8c959f } .grid { stroke: #d0d7de }
  polyline { fill: none; stroke-width: 2.5 }
  .s0 { stroke: #0969da } .s1 { stroke: #bc4c00 } .s2 { stroke: #1a7f37 } .s3 { stroke: #8250df }
  circle.s0 { fill: #0969da } circle.s1 { fill: #bc4c00 }
  circle.s2 { fill: #1a7f37 } circle.s3 { fill: #8250df }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .axis { stroke: #7d8590 } .grid { stroke: #30363d }
    .s0 { stroke: #58a6ff } .s1 { stroke: #f0883e } .s2 { stroke: #56d364 } .s3 { stroke: #bc8cff }
    circle.s0 { fill: #58a6ff } circle.s1 { fill: #f0883e }
    circle.s2 { fill: #56d364 } circle.s3 { fill: #bc8cff }
  }
"""
Points = Sequence[tuple[float, float]]


def draw(raw: Mapping[str, Any], folder: Path) -> list[Path]:
    """The charts that these measurements allow."""
    folder.mkdir(parents=True, exist_ok=True)
    charts = {
        "clients.svg": _clients(raw),
        "load.svg": _load(raw),
        "growth.svg": _growth(raw),
    }
    written = []
    for name, svg in charts.items():
        if svg:
            (folder / name).write_text(svg)
            written.append(folder / name)
    return written


def _clients(raw: Mapping[str, Any]) -> str:
    series = {}
    for commit, shown in (("as the disk is", ""), ("1 ms", ", 1 ms commit")):
        seen = raw.get(f"SQL reservations/s, commit {commit}", {})
        for item in ("hot", "spread"):
            points = [
                (float(name.split()[1]), statistics.median(rates))
                for name, rates in seen.items()
                if name.startswith(item)
            ]
            if points:
                series[f"{item}{shown}"] = points
    return chart("Reservations per second by number of clients (SQL)", "clients", series)


def _load(raw: Mapping[str, Any]) -> str:
    series: dict[str, list[tuple[float, float]]] = {}
    for name, rounds in raw.get("HTTP open load, by offered load", {}).items():
        times = float(name.removesuffix("x"))
        for percentile in ("p50", "p99", "p99.9"):
            values = [
                max(
                    seen[percentile] for status, seen in r["by_status"].items() if int(status) < 400
                )
                for r in rounds
            ]
            series.setdefault(percentile, []).append((times, statistics.median(values)))
        refused = [
            r["by_status"][s]["p99"] for r in rounds for s in r["by_status"] if int(s) == 503
        ]
        if refused:
            series.setdefault("p99 of refusals", []).append((times, statistics.median(refused)))
    return chart(
        "Latency of a reservation by offered load, ms (HTTP)",
        "offered load, multiples of capacity",
        series,
        log_y=True,
    )


def _growth(raw: Mapping[str, Any]) -> str:
    by_orders = "SQL, µs of {} by number of orders"
    names = {
        "reserve, by orders": by_orders.format("reserve"),
        "item read, by orders": by_orders.format("item read"),
        "reserve, by items": "SQL, µs of reserve by number of items",
        "joining, by length of the line": "SQL, µs of joining by length of the line",
    }
    series = {
        name: [
            (float(size.replace(",", "")), statistics.median(costs))
            for size, costs in raw[key].items()
        ]
        for name, key in names.items()
        if key in raw
    }
    return chart("Cost of a call by what has grown, µs with 8 clients (SQL)", "of them", series)


def chart(title: str, x_name: str, series: Mapping[str, Points], *, log_y: bool = False) -> str:
    """x is logarithmic when it spans much. Empty without points."""
    points = [p for line in series.values() for p in line]
    if not points:
        return ""
    xs, ys = sorted({x for x, _ in points}), [y for _, y in points]
    log_x = xs[-1] / max(xs[0], 1e-9) > 15
    at_x = _scale(xs[0], xs[-1], LEFT, WIDTH - RIGHT, log=log_x)
    ticks = _decades(min(ys), max(ys)) if log_y else _steps(max(ys))
    at_y = _scale(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP, log=log_y)
    parts = [f'<text class="title" x="{LEFT}" y="24">{escape(title)}</text>']
    for tick in ticks:
        y = at_y(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{tick:,g}</text>')
    base = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
    for x in xs:
        parts.append(f'<text x="{at_x(x)}" y="{base + 18}" text-anchor="middle">{x:,.10g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{base + 38}" text-anchor="middle">{escape(x_name)}</text>')
    room = (WIDTH - LEFT - RIGHT) / len(series)
    for n, (name, line) in enumerate(series.items()):
        path = " ".join(f"{at_x(x)},{at_y(y)}" for x, y in line)
        parts.append(f'<polyline class="s{n % 4}" points="{path}"/>')
        parts += [
            f'<circle class="s{n % 4}" cx="{at_x(x)}" cy="{at_y(y)}" r="3.5"/>' for x, y in line
        ]
        key = LEFT + n * room
        parts.append(f'<circle class="s{n % 4}" cx="{key + 5:.0f}" cy="{HEIGHT - 20}" r="5"/>')
        parts.append(f'<text x="{key + 15:.0f}" y="{HEIGHT - 16}">{escape(name)}</text>')
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">\n<style>{STYLE}</style>\n{body}\n</svg>\n'
    )


def _scale(
    low: float, high: float, start: float, end: float, *, log: bool
) -> Callable[[float], float]:
    turn = math.log if log else float
    a, b = turn(low), turn(high)
    return lambda value: round(start + (end - start) * (turn(value) - a) / ((b - a) or 1), 1)


def _steps(top: float) -> list[float]:
    size = 10 ** math.floor(math.log10(top))
    step = next(s * size for s in (0.2, 0.5, 1, 2) if top / (s * size) <= 6)
    return [n * step for n in range(math.ceil(top / step) + 1)]


def _decades(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(max(low, 1e-3))), math.ceil(math.log10(high))
    return [10.0**n for n in range(first, max(last, first + 1) + 1)]
