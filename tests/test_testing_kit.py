"""flashsale.testing from another team's view: the files of the how-to, in a folder of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOW_TO = ROOT / "docs" / "how-to" / "test-your-own-sql-tools.md"
SPOILS = """

def test_that_breaks_a_promise(flashsale_db):
    item(flashsale_db)
    flashsale_db.execute("update flashsale_data.items set forfeited = forfeited + 1")


def test_the_next_test_finds_empty_tables(flashsale_db):
    assert value(flashsale_db, "select count(*) from flashsale.item_status") == 0
    assert value(flashsale_db, "select count(*) from shop.sales") == 0


def test_that_fills_a_table_of_the_team(flashsale_db):
    flashsale_db.execute("insert into shop.sales values ('ann')")


def test_that_starts_with_the_teams_table_empty(flashsale_db):
    assert value(flashsale_db, "select count(*) from shop.sales") == 0
"""


def how_to_files() -> dict[str, str]:
    """The files that the how-to shows, by name."""
    blocks = re.findall(r"^`([\w.]+)`:\n\n```\w+\n(.*?)^```$", HOW_TO.read_text(), re.M | re.S)
    return dict(blocks)


def pytest_in(folder: Path, files: dict[str, str]) -> str:
    """pytest's output for these files, in a new process that does not load our tests."""
    for name, text in files.items():
        (folder / name).write_text(text)
    environ = {name: it for name, it in os.environ.items() if not name.startswith("PYTEST")}
    environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # the kit needs no other plugin
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rA", "-W", "error", "-p", "no:cacheprovider"],
        cwd=folder,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.stdout


@pytest.mark.slow
def test_the_how_to_works_as_it_stands_there(tmp_path: Path) -> None:
    files = how_to_files()
    assert set(files) == {"tools.sql", "conftest.py", "test_tools.py"}
    said = pytest_in(tmp_path, files)
    assert re.search(r"^3 passed in", said, re.M), said


@pytest.mark.slow
def test_a_test_that_leaves_a_promise_broken_gets_an_error_and_the_others_none(
    tmp_path: Path,
) -> None:
    files = how_to_files()
    files["tools.sql"] += "\ncreate table shop.sales (customer text);\n"
    files["test_tools.py"] += SPOILS
    said = pytest_in(tmp_path, files)
    assert re.search(r"^7 passed, 1 error in", said, re.M), said
    assert "ERROR test_tools.py::test_that_breaks_a_promise" in said
    assert "promise='forfeits are counted once'" in said
