"""What is replayed of sql/, and that others who build on it do not suffer."""

from __future__ import annotations

from pathlib import Path

import pytest

from flashsale.database.migrate import OBJECTS_QUERY, MigrateError, migrate
from flashsale.database.version import (
    expected_version,
)
from flashsale.dev.postgres import EmbeddedPostgres
from migrate_support import append, empty_url_fixture, other_sql_fixture, version  # noqa: F401 - fixtures
from support import (
    connect,
    item,
    rows,
    value,
)

OLD = "create function flashsale.old() returns integer language sql as 'select 1'"

RESTOCK = "flashsale.restock(integer, integer, text, text, text)"


@pytest.fixture
def a_function_is_gone(other_sql: Path) -> None:
    """A version of sql/ that has no flashsale.old() any more."""
    append(other_sql / "dropped.sql", "drop function if exists flashsale.old();")


@pytest.mark.usefixtures("a_function_is_gone")
def test_another_version_of_sql_takes_the_place_of_the_old_one(database_url: str) -> None:
    with connect(database_url) as conn:
        conn.execute(OLD)
        conn.execute(
            "create or replace view flashsale.payment_event as "
            "select e.event_id, e.type, e.session_id, e.payment_id, 0::bigint as amount, "
            "e.currency, e.occurred_at, e.received_at, e.outcome, e.payload "
            "from flashsale_data.payment_events e"
        )
        conn.execute(f"grant execute on function {RESTOCK} to flashsale_api")
    assert migrate(database_url).replayed
    assert version(database_url) == expected_version()
    with connect(database_url) as conn:
        assert value(conn, "select to_regproc('flashsale.old')") is None
        assert "0" not in value(conn, "select pg_get_viewdef('flashsale.payment_event'::regclass)")
        assert not value(
            conn,
            f"select has_function_privilege('flashsale_api', '{RESTOCK}', 'execute')",
        )


@pytest.mark.parametrize("force", [True, False], ids=["forced", "another version"])
def test_what_others_built_on_ours_survives_a_replay(
    database_url: str, other_sql: Path, force: bool
) -> None:
    """Their columns with data, defaults, views, and grants to their roles."""
    if not force:
        for file in other_sql.glob("*.sql"):
            append(file, "-- another version")
    rights = """
        select has_table_privilege('theirs_reader', 'flashsale.violation', 'select')
          and has_table_privilege('theirs_reader', 'flashsale.order_status', 'select')
          and has_function_privilege('theirs_reader', 'flashsale.items(int, int)', 'execute')
          and has_function_privilege('theirs_reader', 'flashsale.sweep(text, integer)', 'execute')
          and has_schema_privilege('theirs_reader', 'flashsale', 'usage')
    """
    with connect(database_url) as conn:
        conn.execute("create schema theirs")
        conn.execute("create view theirs.report as select sku, paid from flashsale.item_status")
        conn.execute(
            "create table theirs.seen "
            "(told flashsale.order_row, at timestamptz default flashsale.clock())"
        )
        conn.execute("create role theirs_reader")
        conn.execute("grant usage on schema flashsale to theirs_reader")
        conn.execute("grant select on flashsale.violation, flashsale.order_status to theirs_reader")
        conn.execute(
            "grant execute on function flashsale.items(integer, integer), "
            "flashsale.sweep(text, integer) to theirs_reader"
        )
        conn.execute(
            "insert into theirs.seen (told) select r from flashsale.reserve(%s, 'ann') r",
            [item(conn)],
        )
        try:
            assert migrate(database_url, force=force).replayed
            assert len(rows(conn, "select * from theirs.report")) == 1
            assert value(conn, "select (told).customer_id from theirs.seen") == "ann"
            conn.execute("insert into theirs.seen default values")
            assert value(conn, "select count(at) from theirs.seen") == 2
            assert value(conn, rights)
        finally:
            conn.execute("drop schema theirs cascade")
            conn.execute("revoke all on schema flashsale from theirs_reader")
            conn.execute("revoke all on all tables in schema flashsale from theirs_reader")
            conn.execute("revoke all on all functions in schema flashsale from theirs_reader")
            conn.execute("drop role theirs_reader")


@pytest.mark.usefixtures("a_function_is_gone")
def test_an_object_that_others_need_is_named_and_not_dropped(database_url: str) -> None:
    with connect(database_url) as conn:
        before = version(database_url)
        conn.execute(OLD)
        conn.execute("create view public.theirs as select flashsale.old() as one")
        with pytest.raises(
            MigrateError, match=r"view theirs depends on function (flashsale\.)?old\(\)"
        ):
            migrate(database_url)
        assert version(database_url) == before
        conn.execute("drop view public.theirs")
        conn.execute("drop function flashsale.old()")


def test_a_file_that_has_not_changed_is_not_replayed(
    empty_url: str, other_sql: Path, postgres: EmbeddedPostgres
) -> None:
    """A comment line in one file touches nobody who uses what is in the others."""
    migrate(empty_url)
    as_they_are = (
        "select array_agg((p.oid, p.xmin) order by p.oid) from pg_proc p "
        "where p.pronamespace = 'flashsale'::regnamespace and p.proname = any (%s)"
    )
    append(other_sql / "pause_item.sql", "-- another version")
    with connect(empty_url) as conn, connect(empty_url, autocommit=False) as reader:
        pause, clock = (value(conn, as_they_are, [name]) for name in ("pause_item", "max_tries"))
        rows(reader, "select * from flashsale.item_status")
        assert migrate(empty_url).replayed
        assert version(empty_url) == expected_version()
        assert value(conn, as_they_are, ["pause_item"]) != pause
        assert value(conn, as_they_are, ["max_tries"]) == clock
        assert not migrate(empty_url).replayed


def test_the_public_may_not_call_a_new_function(empty_url: str, other_sql: Path) -> None:
    migrate(empty_url)
    append(
        other_sql / "clock.sql",
        "create or replace function flashsale.new() returns integer language sql as 'select 1';",
    )
    assert migrate(empty_url).replayed
    with connect(empty_url) as conn:
        assert not value(
            conn, "select has_function_privilege('flashsale_tool', 'flashsale.new()', 'execute')"
        )
    assert not migrate(empty_url).replayed


def test_the_version_that_replicas_without_a_number_compare_stays(database_url: str) -> None:
    """So that they remain ready while they are replaced."""
    with connect(database_url) as conn:
        conn.execute("comment on schema flashsale is '7 migrations, sql 0123456789abcdef'")
        assert migrate(database_url, force=True).replayed
        assert (
            value(conn, "select obj_description('flashsale'::regnamespace, 'pg_namespace')")
            == "7 migrations, sql 0123456789abcdef"
        )


@pytest.mark.parametrize(
    "damage",
    [
        f"grant execute on function {RESTOCK} to flashsale_api",
        "revoke select on flashsale.item_status from flashsale_api",
        "revoke usage on schema flashsale from flashsale_worker",
        "drop function flashsale.explain_order(bigint)",
        "do $$ begin execute format('grant temporary on database %I to public', "
        "current_database()); end $$",
    ],
)
def test_objects_and_rights_are_repaired_in_a_database_that_is_up_to_date(
    database_url: str, damage: str
) -> None:
    migrate(database_url)  # the public may use TEMP in a clone of a database, such as this
    with connect(database_url) as conn:
        before = value(conn, OBJECTS_QUERY)
        conn.execute(damage)
        assert value(conn, OBJECTS_QUERY) != before
        assert migrate(database_url).replayed
        assert value(conn, OBJECTS_QUERY) == before
    assert not migrate(database_url).replayed
