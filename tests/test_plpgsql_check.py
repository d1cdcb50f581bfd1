"""plpgsql_check reports nothing for any function (Debian's, on PostgreSQL 15)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flashsale.database.migrate import migrate
from support import Connection, connect, postgres_server, rows

BIN_DIR = "/usr/lib/postgresql/15/bin"
EXTENSION = Path("/usr/share/postgresql/15/extension/plpgsql_check.control")

pytestmark = [
    pytest.mark.debian,
    pytest.mark.skipif(
        not EXTENSION.exists(),
        reason="plpgsql_check is missing: apt-get install postgresql-15-plpgsql-check",
    ),
]


@pytest.fixture(scope="module")
def checked() -> Iterator[Connection]:
    with postgres_server(BIN_DIR) as server:
        migrate(server.url())
        with connect(server.url("flashsale", "postgres")) as conn:
            conn.execute("create extension plpgsql_check")
            yield conn


def complaints(conn: Connection) -> list[str]:
    found = rows(
        conn,
        """
        select p.oid::regprocedure::text as name, c.message, c.level, c.query
        from pg_proc p
        join pg_language l on l.oid = p.prolang and l.lanname = 'plpgsql'
        cross join lateral plpgsql_check_function_tb(
          p.oid, performance_warnings => false, extra_warnings => true, security_warnings => true) c
        where p.pronamespace = 'flashsale'::regnamespace
        """,
    )
    return [f"{f.name}: {f.level}: {f.message}: {f.query}" for f in found]


def test_plpgsql_check_is_silent_on_every_function(checked: Connection) -> None:
    assert not complaints(checked), "\n".join(complaints(checked))


def test_plpgsql_check_finds_a_mistake(checked: Connection) -> None:
    checked.execute(
        "create function flashsale.broken() returns int language plpgsql "
        "as 'begin return (select nothing from flashsale.nowhere); end'"
    )
    try:
        assert any("nowhere" in c for c in complaints(checked))
    finally:
        checked.execute("drop function flashsale.broken()")
