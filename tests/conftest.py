"""A Postgres for the session, a migrated template, and a clone of it for each test.

FLASHSALE_TEST_PG_BIN: folder of another server's binaries, such as /usr/lib/postgresql/15/bin; the
default is the embedded PostgreSQL 18.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
from pytest_postgresql.janitor import DatabaseJanitor

from flashsale.embedded import EmbeddedPostgres
from flashsale.migrate import migrate
from support import Connection, connect, rows, server_folder

FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "autovacuum": "off"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fail-on-skip", action="store_true", help="a skipped test fails the run")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if config.getoption("--fail-on-skip") and terminalreporter.stats.get("skipped"):
        terminalreporter.write_line("skips are failures here (--fail-on-skip)", red=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if (
        session.config.getoption("--fail-on-skip")
        and reporter is not None
        and reporter.stats.get("skipped")
    ):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """The session's server; one a worker, so that nobody shares a lock table or a queue."""
    bin_dir = os.environ.get("FLASHSALE_TEST_PG_BIN")
    with server_folder() as folder, EmbeddedPostgres(folder, bin_dir, FAST) as server:
        yield server


@pytest.fixture(scope="session")
def template(postgres: EmbeddedPostgres) -> str:
    """A migrated database, to be cloned."""
    migrate(postgres.url())
    with psycopg.connect(postgres.url("postgres", "postgres"), autocommit=True) as admin:
        admin.execute("alter database flashsale with is_template true allow_connections false")
    return "flashsale"


@pytest.fixture
def database_url(postgres: EmbeddedPostgres, template: str) -> Iterator[str]:
    """A migrated database of the test's own; the promises are checked when the test is over."""
    name = f"t{uuid.uuid4().hex[:12]}"
    admin = psycopg.conninfo.conninfo_to_dict(postgres.url("postgres", "postgres"))
    janitor = DatabaseJanitor(
        user="postgres",
        password=str(admin["password"]),
        host="127.0.0.1",
        port=postgres.port,
        dbname=name,
        template_dbname=template,
    )
    with janitor:
        url = postgres.url(name)
        with connect(postgres.url("postgres", "postgres")) as superuser:
            superuser.execute(f"alter database {name} owner to flashsale")  # type: ignore[call-overload]
        yield url
        with connect(url) as conn:
            assert rows(conn, "select * from flashsale.violation") == []


@pytest.fixture
def db(database_url: str) -> Iterator[Connection]:
    """An autocommit session as the owner of the database."""
    conn = connect(database_url)
    try:
        yield conn
    finally:
        conn.close()


class Clock:
    """The test database's clock: stands still, and goes where it is told."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        conn.execute("create table flashsale_data.test_clock (at timestamptz not null)")
        conn.execute(
            "insert into flashsale_data.test_clock values (date_trunc('second', clock_timestamp()))"
        )
        conn.execute(
            "create or replace function flashsale.clock() returns timestamptz language sql "
            "volatile security definer as 'select at from flashsale_data.test_clock'"
        )

    def at(self, seconds: float = 0) -> datetime:
        """The moment so many seconds from now."""
        (now,) = self._conn.execute("select flashsale.clock()").fetchone() or (None,)
        assert isinstance(now, datetime)
        return now + timedelta(seconds=seconds)

    def advance(self, seconds: float) -> None:
        self.set(self.at(seconds))

    def set(self, moment: datetime, seconds: float = 0) -> None:
        """Goes to a moment, or to so many seconds after it."""
        self._conn.execute(
            "update flashsale_data.test_clock set at = %s", [moment + timedelta(seconds=seconds)]
        )


@pytest.fixture
def clock(db: Connection) -> Clock:
    return Clock(db)
