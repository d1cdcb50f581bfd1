"""The fixtures. All names begin with flashsale_, so that they don't clash with a team's own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from flashsale.database.migrate import migrate
from flashsale.dev.postgres import EmbeddedPostgres
from flashsale.testing.calls import Connection, connect
from flashsale.testing.clock import Clock
from flashsale.testing.databases import Databases
from flashsale.testing.servers import FAST, postgres_server

OwnSql = Callable[[str], object]
"""Loads a team's own SQL into the database at this URL, as the owner of the database."""


@pytest.fixture(scope="session")
def flashsale_server() -> Iterator[EmbeddedPostgres]:
    """The session's Postgres. With pytest-xdist each worker has a server of its own.

    FLASHSALE_TEST_PG_BIN: folder of another server's binaries, such as /usr/lib/postgresql/15/bin;
    by default it is the embedded PostgreSQL 18.
    """
    with postgres_server(os.environ.get("FLASHSALE_TEST_PG_BIN"), FAST) as server:
        yield server


@pytest.fixture(scope="session")
def flashsale_own_sql() -> OwnSql | None:
    """Override this to load your own SQL on top of flashsale: a function that loads it."""
    return None


@pytest.fixture(scope="session")
def flashsale_template(flashsale_server: EmbeddedPostgres, flashsale_own_sql: OwnSql | None) -> str:
    """The name of a migrated database that all others are made from."""
    with connect(flashsale_server.url("postgres", "postgres")) as admin:
        # A server that outlives the session has it as an earlier session left it.
        admin.execute("alter database flashsale with allow_connections true")
        migrate(flashsale_server.url())
        if flashsale_own_sql is not None:
            flashsale_own_sql(flashsale_server.url())
        admin.execute("alter database flashsale with is_template true allow_connections false")
    return "flashsale"


@pytest.fixture(scope="session")
def flashsale_databases(
    flashsale_server: EmbeddedPostgres, flashsale_template: str, flashsale_own_sql: OwnSql | None
) -> Iterator[Databases]:
    """Where each test's database comes from."""
    databases = Databases(flashsale_server, flashsale_template, reuse=flashsale_own_sql is None)
    yield databases
    databases.drop()


@pytest.fixture
def flashsale_url(flashsale_databases: Databases) -> Iterator[str]:
    """The URL of a migrated database with nothing sold yet; the login is its owner.

    When the test is over, `flashsale.violation` must be empty: else the test gets an error.
    """
    yield flashsale_databases.take()
    flashsale_databases.give_back()


@pytest.fixture
def flashsale_db(flashsale_url: str) -> Iterator[Connection]:
    """An autocommit session in that database, as its owner."""
    conn = connect(flashsale_url)
    try:
        yield conn
    finally:
        conn.close()


@pytest.fixture
def flashsale_clock(flashsale_db: Connection) -> Clock:
    """The database's clock, which stands still from now on until the test moves it."""
    return Clock(flashsale_db)
