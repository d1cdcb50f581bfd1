"""The result of every proof, and the table of all results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

SHOWN_VIOLATIONS = 20


@dataclass(frozen=True)
class Row:
    """One fault, how often it occurred, and the results of the operations around it.

    acknowledged, refused, unknown: operations by their outcome; unknown: no answer, or a 5xx.
    violations: a line each; without any, it is proved. skipped: what the machine lacks.
    """

    fault: str
    injected: int = 0
    acknowledged: int = 0
    refused: int = 0
    unknown: int = 0
    violations: Sequence[str] = field(default_factory=tuple)
    note: str = ""
    skipped: str = ""


Proof = Callable[[bool], list[Row]]
"""Takes whether it is the full run, before a release; returns its rows."""


def table(rows: Sequence[Row]) -> str:
    """The rows as text, with the violations below."""
    heads = ("fault", "injected", "acknowledged", "refused", "unknown", "violations", "note")
    lines = [heads, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    text = [_line(line, widths) for line in lines]
    text.insert(1, "  ".join("-" * width for width in widths))
    for row in rows:
        text += [f"VIOLATION  {row.fault}: {it}" for it in row.violations[:SHOWN_VIOLATIONS]]
        if len(row.violations) > SHOWN_VIOLATIONS:
            text.append(f"           {row.fault}: {len(row.violations) - SHOWN_VIOLATIONS} more")
    return "\n".join(text)


def _cells(row: Row) -> tuple[str, ...]:
    if row.skipped:
        return (row.fault, "-", "-", "-", "-", "-", f"skipped: {row.skipped}")
    numbers = (row.injected, row.acknowledged, row.refused, row.unknown, len(row.violations))
    return (row.fault, *(f"{number:,}" for number in numbers), row.note)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *numbers, note = cells
    middle = [text.rjust(width) for text, width in zip(numbers, widths[1:-1], strict=True)]
    return "  ".join([first.ljust(widths[0]), *middle, note]).rstrip()
