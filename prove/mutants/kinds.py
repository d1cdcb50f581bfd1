"""What a mutant is: a text in one file of the code, and what stands there instead of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

ROOT = Path(__file__).parents[2]
SQL = Path(os.environ.get("FLASHSALE_SQL_DIR", ROOT / "sql"))
PYTHON = ROOT / "src" / "flashsale"


@dataclass(frozen=True)
class Mutant:
    """In sql/`file`, `old` becomes `new`, and a test has to notice: one of tests/test_`test`.

    test: a name such as "pay::test_any" in test_pay.py, or "pay" for all of that file. "found"
    stands for test_mutants_found.py.
    """

    name: str
    file: str
    old: str
    new: str
    test: str

    folder: ClassVar[Path] = SQL
    suffix: ClassVar[str] = ".sql"

    @property
    def source(self) -> Path:
        return self.folder / f"{self.file}{self.suffix}"


class PythonMutant(Mutant):
    """The same in src/flashsale/`file`."""

    folder = PYTHON
    suffix = ".py"
