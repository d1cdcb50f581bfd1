"""The version of the tables and functions that this code needs, and where their files are.

The API's readiness check asks whether the version in the database serves this code. So this module
must import no synchronous driver; the code that brings a database up to date is in migrate.py.
"""

from __future__ import annotations

import hashlib
import os
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

API = 2
"""Which SQL this code needs. Raise it when Python begins to need something of SQL that databases of
earlier releases don't have: a replica is ready if its number is among those that the database says.
The statements of each number are in tests/api/, where tests/test_api_numbers.py checks them."""

OLDEST_API = 1
"""The oldest code that can work with this SQL. Raise it when replicas with a lower number can't.
From the migration on none of them is ready then, so the sale stops until they are replaced: prefer
to keep what they need for one more release."""

VERSION_QUERY = (
    "select coalesce(obj_description(to_regnamespace('flashsale_data'), 'pg_namespace'), "
    "'nothing') as version"
)
"""One cheap query that any role may make; its answer is expected_version() if all is up to date.

The comment on the schema flashsale was the version of databases without numbers. It stays as it is,
so that replicas of that time remain ready."""

_INCLUDE = re.compile(r"^\\ir\s+(\S+)\s*$", re.MULTILINE)


class Version(NamedTuple):
    """What a database says about itself."""

    release: tuple[int, ...]
    """The release of flashsale that migrated it."""
    oldest_api: int
    newest_api: int


@cache
def expected_version() -> str:
    """The result of VERSION_QUERY in a database that is up to date."""
    return (
        f"flashsale {_release()}, api {OLDEST_API} to {API}, {len(_migrations())} migrations, "
        f"sql {_sql_hash()}"
    )


def parsed(version: str) -> Version | None:
    """The parts of a result of VERSION_QUERY; None if it has another form."""
    found = re.match(r"flashsale (\d+(?:\.\d+)*)\S*, api (\d+) to (\d+),", version)
    if not found:
        return None
    release, oldest, newest = found.groups()
    return Version(tuple(int(part) for part in release.split(".")), int(oldest), int(newest))


def serves_us(version: str) -> bool:
    """Whether a database with this result of VERSION_QUERY has what this code needs."""
    found = parsed(version)
    return found is not None and found.oldest_api <= API <= found.newest_api


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


def digest(text: str) -> str:
    """A short name of a text: the same text has the same name."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _release() -> str:
    from importlib.metadata import version  # many modules, which the API does without

    return version("flashsale")


def _migrations() -> list[Path]:
    return sorted(migrations_folder().glob("*.sql"))


def _sql_hash() -> str:
    return digest("".join(f"{name}\0{text}\0" for name, text in sql_files()))
