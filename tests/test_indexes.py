"""An index of a big table is replaced while the sale goes on."""

from __future__ import annotations

from collections.abc import Iterator

import asyncpg
import psycopg
import pytest

from flashsale.database import indexes, migrate
from flashsale.database.sqlstates import is_held, meaning
from flashsale.dev.postgres import EmbeddedPostgres
from migrate_support import empty_url_fixture  # noqa: F401 - a fixture
from support import Call, Connection, connect, eventually, one, reserve, rows, value

ORDERS = """
insert into flashsale_data.orders (
  order_id, item_id, ticket, customer_id, status, created_at, reserved_at, expires_at)
select (1::bigint << 32) | n, 1, n, 'c' || n, 'reserved', now(), now(), now() + interval '1 hour'
from generate_series(1, 3) n
"""
OLD, NEW = "orders_one_live_per_customer", "orders_one_open_per_customer"


@pytest.fixture(name="before")
def before_fixture(empty_url: str) -> Iterator[Connection]:
    """A database as the release before left it, with three orders."""
    with connect(empty_url) as conn:
        with conn.transaction():
            migrate.apply_migrations(conn, before="0011.money")
        for label in ("settling", "refunded"):
            conn.execute(f"alter type flashsale_data.order_status add value '{label}'".encode())
        with conn.transaction():
            migrate.apply_migrations(conn, before="0015.groups")
        conn.execute("create sequence flashsale_data.line_1 as integer")
        conn.execute("select setval('flashsale_data.line_1', 3)")
        conn.execute(
            "insert into flashsale_data.items (sku, name, price, currency, stock, hold_seconds, "
            "line, created_at) "
            "values ('a', 'A', 1, 'EUR', 9, 60, 'flashsale_data.line_1', now())"
        )
        conn.execute(ORDERS)
        yield conn


def has(conn: Connection) -> dict[str, bool]:
    """The indexes that one customer's orders meet in, and whether each is valid."""
    found = rows(
        conn,
        "select c.relname, i.indisvalid from pg_index i join pg_class c on c.oid = i.indexrelid "
        "where c.relname in (%s, %s)",
        OLD,
        NEW,
    )
    return {row.relname: row.indisvalid for row in found}


def test_a_table_with_orders_gets_its_index_before_the_migration(before: Connection) -> None:
    indexes.prepare(before)
    assert has(before) == {OLD: True, NEW: True}
    indexes.prepare(before)  # again, after a kill


def test_orders_of_the_release_before_count(before: Connection, empty_url: str) -> None:
    assert "0015.groups" in migrate.migrate(empty_url).applied
    assert has(before) == {NEW: True}
    again = reserve(before, 1, "c2")
    assert (again.outcome, again.ticket, again.quantity, again.units) == ("existing", 2, 1, 1)
    assert reserve(before, 1, "dan").ticket == 4


def test_the_old_index_stays_as_long_as_a_call_may_be_under_way(
    before: Connection, empty_url: str
) -> None:
    with connect(empty_url, autocommit=False) as slow:
        slow.execute("select 1")
        migrating = Call(lambda: migrate.migrate(empty_url))
        applied = "select count(*) from flashsale_data._yoyo_migration where migration_id ~ '0015'"
        eventually(lambda: value(before, applied))
        assert has(before) == {OLD: True, NEW: True}
        slow.execute(
            ORDERS.replace("n, 1, n", "n + 10, 1, n + 10").replace("'c' ||", "'d' ||")
            + " on conflict (item_id, customer_id) where ended_at is null do nothing"
        )
        slow.commit()
        migrating.result()
    assert has(before) == {NEW: True}


def test_a_transaction_that_does_not_end_is_named(
    before: Connection, empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexes, "_CALL_SECONDS", 0.1)
    with connect(empty_url, autocommit=False) as slow:
        slow.execute("select 1")
        with pytest.raises(migrate.MigrateError, match="a transaction is still open"):
            migrate.migrate(empty_url)
    migrate.migrate(empty_url)
    assert has(before) == {NEW: True}


def test_an_index_that_a_kill_left_behind_is_made_again(
    before: Connection, postgres: EmbeddedPostgres
) -> None:
    indexes.prepare(before)
    name = one(before, "select current_database() as name").name
    with connect(postgres.url(name, "postgres")) as admin:
        admin.execute(
            f"update pg_index set indisvalid = false where indexrelid = 'flashsale_data.{NEW}'"
            "::regclass".encode()
        )
    assert has(before)[NEW] is False
    indexes.prepare(before)
    assert has(before) == {OLD: True, NEW: True}


def test_requests_that_meet_in_the_other_index_are_tried_again() -> None:
    for name in (OLD, NEW):
        error = asyncpg.UniqueViolationError()
        error.constraint_name = name
        assert is_held(error)
        told = meaning(error)
        assert told is not None
        assert told.status == 503
    assert psycopg.errors.UniqueViolation.sqlstate == asyncpg.UniqueViolationError.sqlstate
