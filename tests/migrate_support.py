"""Databases and copies of sql/ for the tests of migrate."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from flashsale.database.version import (
    VERSION_QUERY,
    expected_version,
    sql_files,
    sql_folder,
)
from flashsale.dev.postgres import EmbeddedPostgres
from support import (
    Connection,
    connect,
    value,
)


@pytest.fixture(name="empty_url")
def empty_url_fixture(postgres: EmbeddedPostgres) -> Iterator[str]:
    """An empty database of the test's own."""
    name = f"e{uuid.uuid4().hex[:12]}"
    with connect(postgres.url("postgres", "postgres")) as admin:
        admin.execute(f"create database {name} owner flashsale")
        yield postgres.url(name)
        admin.execute(f"drop database {name} with (force)")


def version(url: str) -> str:
    with connect(url) as conn:
        return str(value(conn, VERSION_QUERY))


@pytest.fixture(name="other_sql")
def other_sql_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of sql/ for another version of it, which is what is installed from now on."""
    folder = tmp_path / "sql"
    shutil.copytree(sql_folder(), folder)
    monkeypatch.setenv("FLASHSALE_SQL_DIR", str(folder))
    for read_once in (sql_files, expected_version):
        read_once.cache_clear()
    yield folder
    for read_once in (sql_files, expected_version):
        read_once.cache_clear()


def append(file: Path, text: str) -> None:
    """Adds a line at the end, for all who read sql/ from now on."""
    with file.open("a") as opened:
        opened.write(text + "\n")
    for read_once in (sql_files, expected_version):
        read_once.cache_clear()


def is_waited_for(watcher: Connection, session: Connection) -> bool:
    """Whether a session waits for the other one."""
    return bool(
        value(
            watcher,
            "select exists (select from pg_stat_activity where %s = any (pg_blocking_pids(pid)))",
            session.info.backend_pid,
        )
    )
