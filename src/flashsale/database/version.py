"""The version of the tables and functions that this code needs, and where their files are.

The API's readiness check compares it with the version in the database. So this module must import
no synchronous driver; the code that brings a database up to date is in migrate.py.
"""

from __future__ import annotations

import hashlib
import os
import re
from functools import cache
from pathlib import Path

VERSION_QUERY = (
    "select coalesce(obj_description(to_regnamespace('flashsale'), 'pg_namespace'), 'nothing') "
    "as version"
)
"""One cheap query that any role may make; its answer is expected_version() if all is up to date."""

_INCLUDE = re.compile(r"^\\ir\s+(\S+)\s*$", re.MULTILINE)


@cache
def expected_version() -> str:
    """The result of VERSION_QUERY in a database that is up to date."""
    return f"{len(_migrations())} migrations, sql {_sql_hash()}"


def sql_folder() -> Path:
    """Where sql/ is: inside an installed package, else at the top of the repository.

    FLASHSALE_SQL_DIR names another folder, such as a copy with one function changed.
    """
    if elsewhere := os.environ.get("FLASHSALE_SQL_DIR"):
        return Path(elsewhere)
    return _folder("sql")


def migrations_folder() -> Path:
    """Where migrations/ is: inside an installed package, else at the top of the repository."""
    return _folder("migrations")


@cache
def sql_files() -> list[tuple[str, str]]:
    """Name and text of install.sql without its list, then of the files it lists, in that order."""
    folder = sql_folder()
    contents = (folder / "install.sql").read_text()
    files = [("install.sql", _INCLUDE.sub("", contents))]
    return files + [(name, (folder / name).read_text()) for name in _INCLUDE.findall(contents)]


def _folder(name: str) -> Path:
    package = Path(__file__).parents[1]
    inside = package / name
    return inside if inside.is_dir() else package.parents[1] / name


def _migrations() -> list[Path]:
    return sorted(migrations_folder().glob("*.sql"))


def _sql_hash() -> str:
    digest = hashlib.sha256()
    for name, text in sql_files():
        digest.update(f"{name}\0{text}\0".encode())
    return digest.hexdigest()[:16]
