"""Breaks the code on purpose, one rule at a time, and shows that a test notices.

    python -m prove.mutants [part of a name ...]

Each mutant is a copy of sql/ or of src/ with one rule removed. The test that it names runs against
it: if that fails, the mutant is killed. The exit status is 1 if a mutant survives, or if one of
these tests fails with the unchanged code.
FLASHSALE_SQL_DIR names another sql/ to start from.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue

from flashsale.dev.postgres import EmbeddedPostgres
from flashsale.testing.servers import FAST, postgres_server
from prove.mutants.draw import DRAW_MUTANTS, DRAW_PYTHON_MUTANTS
from prove.mutants.erasing import ERASING_MUTANTS
from prove.mutants.feed import FEED_MUTANTS
from prove.mutants.forecast import FORECAST_MUTANTS
from prove.mutants.kinds import ROOT, Mutant, PythonMutant
from prove.mutants.python import PYTHON_MUTANTS
from prove.mutants.quantity import QUANTITY_MUTANTS
from prove.mutants.sql import SQL_MUTANTS
from prove.mutants.staff import STAFF_MUTANTS

MUTANTS: Sequence[Mutant] = [
    *SQL_MUTANTS,
    *QUANTITY_MUTANTS,
    *DRAW_MUTANTS,
    *STAFF_MUTANTS,
    *FEED_MUTANTS,
    *FORECAST_MUTANTS,
    *ERASING_MUTANTS,
    *PYTHON_MUTANTS,
    *DRAW_PYTHON_MUTANTS,
]
AT_ONCE = 2
PYTEST_ITSELF = "pytest itself: "
"""Instead of a test: pytest could not run them, so nothing has noticed anything."""


@dataclass(frozen=True)
class Fate:
    """The fate of a mutant: the test that noticed it; None: it survived."""

    mutant: Mutant
    killer: str | None
    seconds: float


def misfit(mutant: Mutant) -> str | None:
    """Why the mutant can't be tried on this code; None if it can."""
    times = mutant.source.read_text().count(mutant.old)
    if times != 1:
        return f"{mutant.name}: {mutant.source.name} has it {times} times, not once"
    file, _, test = place_of(mutant.test).partition("::")
    source = ROOT / "tests" / file
    if not source.exists() or (test and f"def {test}(" not in source.read_text()):
        return f"{mutant.name}: there is no test {mutant.test}"
    return None


def place_of(name: str) -> str:
    """What pytest calls it: found::test_x is tests/test_mutants_found.py::test_x."""
    file, colons, test = name.partition("::")
    file = "mutants_found" if file == "found" else file
    return f"test_{file}.py{colons}{test}"


def broken(mutant: Mutant, folder: Path) -> Mapping[str, str]:
    """Makes a copy of the code with the mutant's change; returns the variables that choose it."""
    if isinstance(mutant, PythonMutant):
        copy = shutil.copytree(mutant.folder, folder / "src" / mutant.folder.name)
        for name in ("sql", "migrations"):  # where the code looks for them
            (folder / name).symlink_to(ROOT / name)
        chosen = {"PYTHONPATH": str(folder / "src")}
    else:
        copy = shutil.copytree(mutant.folder, folder / "sql")
        chosen = {"FLASHSALE_SQL_DIR": str(copy)}
    source = Path(copy) / mutant.source.relative_to(mutant.folder)
    source.write_text(source.read_text().replace(mutant.old, mutant.new))
    return chosen


def first_failure(
    code: Mapping[str, str], names: Iterable[str], server: EmbeddedPostgres
) -> str | None:
    """The first of these tests that fails with this code."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=no"]
    command += ["-p", "pytest_asyncio.plugin", "-p", "pytest_timeout"]
    command += ["-m", "not storm and not proof"]
    command += [f"--server={server.data_dir}:{server.port}", "--timeout=60"]
    command += [*(f"tests/{place_of(name)}" for name in names)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | code | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},  # half of its start
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return None
    found = re.search(r"^(?:FAILED|ERROR) tests/(\S+)", done.stdout, re.MULTILINE)
    return found[1] if found else f"{PYTEST_ITSELF}{(done.stdout + done.stderr)[-300:]}"


def fate_of(mutant: Mutant, server: EmbeddedPostgres) -> Fate:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="flashsale-mutant-") as folder:
        code = broken(mutant, Path(folder))
        killer = first_failure(code, [mutant.test], server)
    if killer and killer.startswith(PYTEST_ITSELF):
        print(f"{mutant.name}: {killer}", flush=True)
        killer = None
    return Fate(mutant, killer, time.monotonic() - started)


def judge(chosen: Sequence[Mutant]) -> tuple[list[Fate], list[str]]:
    """The fate of each mutant, and the problems of the proof itself, a line each.

    The mutants share a server, because starting one takes as long as killing a mutant. The
    unchanged code is tested last, which shows whether a mutant has left something behind.
    """
    misfits = [why for mutant in chosen if (why := misfit(mutant))]
    chosen = [mutant for mutant in chosen if not misfit(mutant)]
    free: SimpleQueue[EmbeddedPostgres] = SimpleQueue()
    with ExitStack() as stack, ThreadPoolExecutor(AT_ONCE) as pool:
        servers = [stack.enter_context(postgres_server(settings=FAST)) for _ in range(AT_ONCE)]
        for server in servers:
            free.put(server)

        def judged(mutant: Mutant) -> Fate:
            server = free.get()
            try:
                fate = fate_of(mutant, server)
            finally:
                free.put(server)
            print(
                f"{mutant.name:60} {fate.seconds:4.0f} s  {fate.killer or 'SURVIVED'}", flush=True
            )
            return fate

        fates = list(pool.map(judged, chosen))
        tests = sorted({mutant.test for mutant in chosen})
        failures = pool.map(partial(first_failure, {}), (tests[::2], tests[1::2]), servers)
        return fates, misfits + [
            f"the unchanged code fails {failure}" for failure in failures if failure
        ]
