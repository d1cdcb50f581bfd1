"""Each role tries forbidden calls: they are refused, and nothing changes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from flashsale.database.migrate import migrate
from flashsale.dev.postgres import EmbeddedPostgres
from support import Connection, connect, item, many, reserve, rows, value

AUDIENCES = ("api", "worker", "tool", "operator")

ATTEMPTS = [
    *(
        statement.format(table=table)
        for table in ("flashsale_data.items", "flashsale_data.orders", "pgmq.q_payments")
        for statement in (
            "select * from {table}",
            "insert into {table} default values",
            "delete from {table}",
            "truncate {table}",
            "drop table {table}",
            "alter table {table} add column mine integer",
            "comment on table {table} is 'mine'",
            "grant select on {table} to public",
        )
    ),
    "update flashsale_data.items set stock = 1000000",
    "select nextval('flashsale_data.line_1')",
    "select setval('flashsale_data.line_1', 1)",
    "select currval('flashsale_data.line_1')",
    "select last_value from flashsale_data.line_1",
    "create schema mine",
    "create table public.mine ()",
    "create table flashsale.mine ()",
    "create temp table mine ()",
    "create type public.mine as enum ('x')",
    "create function public.mine() returns integer language sql return 1",
    "create or replace function flashsale.clock() returns timestamptz language sql return now()",
    "drop function flashsale.clock()",
    "alter function flashsale.clock() reset all",
    "create extension pg_buffercache",
    "create role mine",
    "select pgmq.send('payments', '{}')",
    "select pgmq.read('payments', 1, 1)",
    "select pgmq.purge_queue('payments')",
    "select cron.schedule('mine', '* * * * *', 'select 1')",
    "select pg_read_file('/etc/passwd')",
    "copy (select 1) to program 'true'",
    "copy (select 1) to '/tmp/mine'",
    "alter system set fsync = off",
    "set session_replication_role = replica",
]


def fingerprint(conn: Connection) -> list[Any]:
    """The rows of every table and sequence, and the objects in the catalogue."""
    tables = rows(
        conn,
        "select oid::regclass::text as name from pg_class where relkind in ('r', 'S') "
        "and relnamespace in ('flashsale_data'::regnamespace, 'pgmq'::regnamespace) order by 1",
    )
    found: list[Any] = [
        (t.name, sorted(map(str, rows(conn, f"select * from {t.name}")))) for t in tables
    ]
    for catalogue in ("pg_class", "pg_proc", "pg_namespace", "pg_largeobject_metadata", "pg_roles"):
        found.append(value(conn, f"select count(*) from {catalogue}"))
    return found


@pytest.mark.parametrize("audience", AUDIENCES)
def test_a_role_can_not_call_the_verbs_of_another_role(
    database_url: str, postgres: EmbeddedPostgres, db: Connection, audience: str
) -> None:
    migrate(database_url, force=True)  # a clone does not take its template's own grants along
    many(db, item(db), ["ann", "bob"])
    name = value(db, "select current_database()")
    with connect(postgres.url(name, "postgres")) as superuser:
        before = fingerprint(superuser)
        with connect(database_url, f"flashsale_{audience}") as conn:
            allowed = [attempt for attempt in ATTEMPTS if not _refused(conn, attempt)]
        assert allowed == []
        assert fingerprint(superuser) == before


def _refused(conn: Connection, attempt: str) -> bool:
    sqlstate = None
    try:
        conn.execute(attempt)
    except psycopg.Error as error:
        sqlstate = error.sqlstate
    # Anything else would only mean that the attempt has a mistake; 3F000: no cron here.
    assert sqlstate in (None, "42501", "3F000"), (attempt, sqlstate)
    return sqlstate is not None


@pytest.mark.parametrize("audience", AUDIENCES)
def test_a_login_of_one_role_can_become_no_other(
    postgres: EmbeddedPostgres, db: Connection, audience: str
) -> None:
    name = value(db, "select current_database()")
    with connect(postgres.url(name, "postgres")) as conn:
        # As a login that has only this role: the owner, who has all, could always go back.
        conn.execute(f"set session authorization flashsale_{audience}")
        for other in {"flashsale", "postgres", *(f"flashsale_{a}" for a in AUDIENCES)}:
            if other != f"flashsale_{audience}":
                assert _refused(conn, f"set role {other}"), other


@pytest.mark.parametrize("audience", AUDIENCES)
def test_each_role_has_its_limits(
    postgres: EmbeddedPostgres, db: Connection, audience: str
) -> None:
    """Of a login that is this role: what it leaves open holds nobody up for long."""
    role = f"flashsale_{audience}"
    with connect(postgres.url("postgres", "postgres")) as admin:
        admin.execute(f"alter role {role} login password 'x'")
        try:
            with connect(postgres.url(db.info.dbname), user=role, password="x") as conn:
                assert value(conn, "show statement_timeout") in ("10s", "5min")
                assert value(conn, "show idle_in_transaction_session_timeout") in ("10s", "1min")
            assert value(admin, "select rolconnlimit from pg_roles where rolname = %s", role) > 0
        finally:
            admin.execute(f"alter role {role} nologin password null")


def test_limits_that_somebody_has_set_survive_migrate(
    postgres: EmbeddedPostgres, database_url: str
) -> None:
    with connect(postgres.url("postgres", "postgres")) as admin:
        admin.execute("alter role flashsale_tool connection limit 7")
        try:
            migrate(database_url, force=True)
            assert (
                value(admin, "select rolconnlimit from pg_roles where rolname = 'flashsale_tool'")
                == 7
            )
        finally:
            admin.execute("alter role flashsale_tool connection limit 50")


# Types that sql/ names without a schema, and that are not words of SQL's grammar: those are looked
# up by the search_path.
LOOKED_UP = ("text", "timestamptz", "jsonb", "regclass", "xid8", "uuid", "pg_snapshot", "bytea")


def test_a_caller_with_temporary_objects_gets_none_of_their_code_run(
    database_url: str, postgres: EmbeddedPostgres, db: Connection
) -> None:
    """Domains in pg_temp with the names of built-in types, whose CHECK says who runs it."""
    shoe = item(db, stock=2)
    order, other = many(db, shoe, ["ann", "bob"])
    shirt = item(db, "shirt", draw=True, opens_at=datetime.now(UTC) + timedelta(days=1))
    reserve(db, shirt, "ann")
    db.execute("select flashsale.publish_events()")
    name = value(db, "select current_database()")
    db.execute(f"grant temporary on database {name} to flashsale_tool")
    with connect(database_url, "flashsale_tool") as tool:
        tool.execute("create temporary table caught (who text)")
        tool.execute(
            "create function pg_temp.trap(anyelement) returns boolean language plpgsql as "
            "$$ begin raise exception 'the trap was run by %', current_user; end $$"
        )
        for type_ in LOOKED_UP:
            tool.execute(
                f"create domain pg_temp.{type_} as pg_catalog.{type_} check (pg_temp.trap(value))"
            )
        with pytest.raises(psycopg.errors.RaiseException, match="run by flashsale_tool"):
            tool.execute("set search_path = pg_temp, pg_catalog; select '2026-01-01'::timestamptz")
        calls = [
            f"reserve_many(array[{shoe}], array['cat'])",
            f"reserve({shoe}, 'dan')",
            f"find_held(array[{shoe}], array['eve'], array['key'])",
            f"order_status({order.order_id}, 'ann')",
            "orders_of('ann')",
            f"orders_by_id(array[{order.order_id}::int8])",
            f"item_status({shoe})",
            "items()",
            f"request_payment({order.order_id}, 'ann')",
            f"pay_offline({order.order_id}, 'r1')",
            f"cancel({other.order_id}, 'bob')",
            f"cancel({other.order_id}, 'bob', 'key')",
            f"explain_order({order.order_id})",
            f"fairness({shoe})",
            f"draw_status({shirt})",
            f"draw_entries({shirt})",
            "events()",
            "running_transactions()",
        ]
        assert {call.split("(")[0] for call in calls} == {
            row.proname
            for row in rows(
                db,
                "select proname from pg_proc where pronamespace = 'flashsale'::regnamespace "
                "and prosecdef and has_function_privilege('flashsale_tool', oid, 'execute') "
                "and proname not in ('clock', 'hold_fate', 'issued_tickets', 'place_of', "
                "'provider_down')",
            )
        }
        for search_path in ("pg_temp, pg_catalog", "public"):
            tool.execute(f"set search_path = {search_path}")
            with tool.transaction(force_rollback=True):
                for call in calls:
                    rows(tool, f"select * from flashsale.{call}")
