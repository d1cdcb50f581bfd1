"""Proofs that are tests of this repository, run at a larger size. Their counts become rows.

The tests write their counts as properties into pytest's report, from which they are read here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from prove import mutants as breaking
from prove.report import Row

ROOT = Path(__file__).parent.parent
PERMUTATIONS = "tests/test_permutations.py"
WORKERS = "2"


def model(full: bool) -> list[Row]:
    """Random calls against the Python model of the line: half of the examples by HTTP."""
    examples = 10_000 if full else 250
    found, failures = _pytest("tests/test_model.py", FLASHSALE_TEST_MODEL_EXAMPLES=str(examples))
    return [
        Row(
            "sequences of calls against the model, by SQL and by HTTP",
            injected=found["examples"],
            acknowledged=found["calls"] - found["refused"],
            refused=found["refused"],
            violations=failures,
            note="injected: sequences of up to 30 calls, the clock under control",
        )
    ]


def permutations(full: bool) -> list[Row]:
    """Every interleaving of the steps of two transactions, and of the relevant triples.

    The short run has all of them at READ COMMITTED, and a sample at REPEATABLE READ.
    """
    every = f"{PERMUTATIONS}::test_no_interleaving_breaks_a_promise"
    sample = f"{PERMUTATIONS}::test_a_sample_of_all_interleavings_breaks_no_promise"
    halves = [f"{every}[read committed and read committed-{half}]" for half in (0, 1)]
    chosen = [every] if full else [*halves, sample]
    found, failures = _pytest("-m", "proof or not proof", *chosen)
    return [
        Row(
            "every interleaving of two verbs, and of triples",
            injected=found["interleavings"],
            acknowledged=found["calls"] - found["refused"],
            refused=found["refused"],
            violations=failures,
            note=f"{found['waited']:,} steps had to wait; {found['unserializable']:,} of the "
            "refusals are 40001",
        )
    ]


def mutants(full: bool) -> list[Row]:
    """Breaks the code one rule at a time. A mutant that no test notices is a violation."""
    fates, unfit = breaking.judge(breaking.MUTANTS)
    survivors = [f"survived: {fate.mutant.name}" for fate in fates if fate.killer is None]
    return [
        Row(
            "mutants: the code with one rule taken out",
            injected=len(fates),
            violations=[*unfit, *survivors],
            note=f"{len(fates) - len(survivors)} killed, each by the test that it names",
        )
    ]


def _pytest(*arguments: str, **environ: str) -> tuple[Counter[str], list[str]]:
    """Runs tests; returns the sums of their properties, and a line for each that failed."""
    with tempfile.TemporaryDirectory(prefix="flashsale-prove-") as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-n", WORKERS, "-p", "no:cacheprovider"]
        done = subprocess.run(
            [*command, f"--junitxml={report}", *arguments],
            cwd=ROOT,
            env=os.environ | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    found: Counter[str] = Counter()
    for told in (p for case in cases for p in case.iter("property")):
        found[told.attrib["name"]] += int(told.attrib["value"])
    failures = [
        f"{case.attrib['name']}: {wrong.attrib.get('message', '')[:300]}"
        for case in cases
        for wrong in case
        if wrong.tag in ("failure", "error")
    ]
    if failures or done.returncode:
        print(done.stdout)
    if done.returncode and not failures:
        failures = [f"pytest ended with {done.returncode}"]
    return found, failures
