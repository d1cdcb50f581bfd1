"""What a mutant is: a text in one file of the code, and what stands there instead of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

ROOT = Path(__file__).parents[2]
SQL = Path(os.environ.get("FLASHSALE_SQL_DIR", ROOT / "sql"))
PYTHON = ROOT / "src" / "flashsale"


@dataclass(frozen=True)
class Mutant:
    """In sql/`file`, `old` becomes `new`. The tests of `first` are most likely to notice.

    first: names of test files, such as "pay", or "found" for test_mutants_found.py, with a test's
    name where the whole file would take long: "sweep::test_x".
    """

    name: str
    file: str
    old: str
    new: str
    first: str

    folder: ClassVar[Path] = SQL
    suffix: ClassVar[str] = ".sql"
    others: ClassVar[Sequence[str]] = (
        *("found", "reserve", "cancel", "expire", "promote", "pay", "items", "jobs", "model"),
        *("races", "permutations", "limits", "sweep", "violation"),
    )
    """The tests that may notice if those of `first` don't."""

    @property
    def source(self) -> Path:
        return self.folder / f"{self.file}{self.suffix}"


class PythonMutant(Mutant):
    """The same in src/flashsale/`file`. Only the tests of `first` are run: there are no others."""

    folder = PYTHON
    suffix = ".py"
    others = ()
