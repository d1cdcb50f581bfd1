"""Migrating: from many processes at once, again, from older versions, and after a crash."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from urllib.parse import urlencode

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from flashsale.database import migrate as migrate_module
from flashsale.database import sequences
from flashsale.database.migrate import OBJECTS_QUERY, MigrateError, migrate
from flashsale.database.version import (
    VERSION_QUERY,
    expected_version,
    migrations_folder,
    sql_files,
    sql_folder,
)
from flashsale.dev.postgres import EmbeddedPostgres
from flashsale.testing.servers import FAST
from support import (
    Call,
    Connection,
    connect,
    eventually,
    item,
    postgres_server,
    reserve,
    rows,
    value,
)

MIGRATIONS = len(list((Path(__file__).parents[1] / "migrations").glob("*.sql")))


@pytest.fixture
def empty_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """An empty database of the test's own."""
    name = f"e{uuid.uuid4().hex[:12]}"
    with connect(postgres.url("postgres", "postgres")) as admin:
        admin.execute(f"create database {name} owner flashsale")
        yield postgres.url(name)
        admin.execute(f"drop database {name} with (force)")


def start_migrating(url: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "flashsale", "migrate"],
        env={**os.environ, "FLASHSALE_DATABASE_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def version(url: str) -> str:
    with connect(url) as conn:
        return str(value(conn, VERSION_QUERY))


def test_twenty_at_once_all_succeed(empty_url: str) -> None:
    """Forks a process that has imported everything, because imports take longer than migrating."""
    processes = get_context("forkserver")
    processes.set_forkserver_preload(["flashsale.database.migrate"])
    with processes.Pool(20) as pool:
        reports = pool.map(migrate, [empty_url] * 20, chunksize=1)
    assert sorted(len(report.applied) for report in reports) == [0] * 19 + [MIGRATIONS]
    assert sum(report.replayed for report in reports) == 1
    assert version(empty_url) == expected_version()


def test_a_second_migrate_changes_nothing(empty_url: str) -> None:
    first, second, forced = (
        migrate(empty_url),
        migrate(empty_url),
        migrate(empty_url, force=True),
    )
    assert (len(first.applied), first.replayed) == (MIGRATIONS, True)
    assert (second.applied, second.replayed) == ([], False)
    assert (forced.applied, forced.replayed) == ([], True)


def test_a_replay_keeps_the_data(database_url: str) -> None:
    with connect(database_url) as conn:
        order = reserve(conn, item(conn), "ann", "k")
        migrate(database_url, force=True)
        assert reserve(conn, order.item_id, "ann", "k").order_id == order.order_id


@pytest.fixture
def other_sql(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
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


@pytest.fixture
def a_function_is_gone(other_sql: Path) -> None:
    """A version of sql/ that has no flashsale.old() any more."""
    append(other_sql / "dropped.sql", "drop function if exists flashsale.old();")


OLD = "create function flashsale.old() returns integer language sql as 'select 1'"


@pytest.mark.usefixtures("a_function_is_gone")
def test_another_version_of_sql_takes_the_place_of_the_old_one(database_url: str) -> None:
    with connect(database_url) as conn:
        conn.execute(OLD)
        conn.execute(
            "create or replace view flashsale.payment_event as "
            "select e.event_id, e.type, e.session_id, e.payment_id, 0::bigint as amount, "
            "e.currency, e.occurred_at, e.received_at, e.outcome "
            "from flashsale_data.payment_events e"
        )
        conn.execute(
            "grant execute on function flashsale.restock(integer, integer) to flashsale_api"
        )
    assert migrate(database_url).replayed
    assert version(database_url) == expected_version()
    with connect(database_url) as conn:
        assert value(conn, "select to_regproc('flashsale.old')") is None
        assert "0" not in value(conn, "select pg_get_viewdef('flashsale.payment_event'::regclass)")
        assert not value(
            conn,
            "select has_function_privilege('flashsale_api', "
            "'flashsale.restock(integer, integer)', 'execute')",
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


@pytest.mark.parametrize("milliseconds", [0, 60, 150, 300])
def test_a_kill_in_the_middle_does_no_harm(empty_url: str, milliseconds: int) -> None:
    with connect(empty_url) as conn:
        process = start_migrating(empty_url)
        eventually(
            lambda: value(
                conn,
                "select count(*) from pg_locks l join pg_database d on d.oid = l.database "
                "where l.locktype = 'advisory' and d.datname = current_database()",
            ),
            60,
        )
        time.sleep(milliseconds / 1000)
        process.send_signal(signal.SIGKILL)
        process.wait()
    migrate(empty_url)
    assert version(empty_url) == expected_version()


def test_a_lock_that_yoyo_left_behind_is_cleared(empty_url: str) -> None:
    migrate(empty_url)
    with connect(empty_url) as conn:
        conn.execute("insert into flashsale_data.yoyo_lock values (1, now(), 99999)")
        conn.execute(
            "delete from flashsale_data._yoyo_migration where migration_id like '%%.queues'"
        )
    began = time.monotonic()
    assert migrate(empty_url).applied == ["0006.queues"]
    assert time.monotonic() - began < 8  # yoyo would wait ten seconds for a lock, and give up


def test_a_database_that_has_more_migrations_is_left_alone(empty_url: str) -> None:
    migrate(empty_url)
    with connect(empty_url) as conn:
        conn.execute(
            "insert into flashsale_data._yoyo_migration "
            "(migration_hash, migration_id, applied_at_utc) "
            "values ('x', '9999.of_tomorrow', now())"
        )
        with pytest.raises(MigrateError, match=r"does not know .* \(9999\.of_tomorrow\)"):
            migrate(empty_url, force=True)


def test_a_reader_in_the_way_delays_and_does_not_break_the_replay(
    database_url: str, postgres: EmbeddedPostgres
) -> None:
    with (
        connect(database_url, autocommit=False) as reader,
        connect(postgres.url("postgres", "postgres")) as watcher,
    ):
        rows(reader, "select * from flashsale.item_status")
        migrating = Call(lambda: migrate(database_url, force=True))
        eventually(lambda: is_waited_for(watcher, reader))
        reader.rollback()
        assert migrating.result().replayed


def is_waited_for(watcher: Connection, session: Connection) -> bool:
    """Whether a session waits for the other one."""
    return bool(
        value(
            watcher,
            "select exists (select from pg_stat_activity where %s = any (pg_blocking_pids(pid)))",
            session.info.backend_pid,
        )
    )


def test_an_error_is_one_line_without_the_password(
    postgres: EmbeddedPostgres, empty_url: str
) -> None:
    with pytest.raises(MigrateError, match="could not be used") as error:
        migrate("postgresql://flashsale:geheim@127.0.0.1:1/flashsale")
    assert "geheim" not in str(error.value)
    with connect(postgres.url("postgres", "postgres")) as admin:
        admin.execute("create role nobody_special login password 'x'")
    try:
        poor = empty_url.replace("//flashsale:", "//nobody_special:").split("@")
        with pytest.raises(MigrateError, match="migrate as the owner"):
            migrate(f"postgresql://nobody_special:x@{poor[1]}")
    finally:
        with connect(postgres.url("postgres", "postgres")) as admin:
            admin.execute("drop role nobody_special")


def test_migrations_and_sql_define_nothing_twice() -> None:
    tables = "\n".join(p.read_text() for p in migrations_folder().glob("*.sql"))
    functions = "\n".join(text for _name, text in sql_files())
    assert not re.search(r"create (or replace )?(function|procedure|view)", tables)
    assert not re.search(r"^create (table|type|index|sequence)", functions, re.MULTILINE)


def test_sql_can_be_replayed_over_itself() -> None:
    """Functions and views are replaced, and only dropped by name."""
    for name, text in sql_files():
        assert not re.search(r"^create (function|procedure|view)", text, re.MULTILINE), name
        assert "cascade" not in re.sub(r"--.*", "", text), name


def test_the_owner_need_not_be_a_superuser(database_url: str) -> None:
    with psycopg.connect(database_url) as conn:
        assert conn.execute(
            "select rolsuper from pg_roles where rolname = current_user"
        ).fetchone() == (False,)


def test_a_socket_in_the_url_reaches_yoyo_too(postgres: EmbeddedPostgres, empty_url: str) -> None:
    given = conninfo_to_dict(empty_url)
    host, port, name = given.pop("host"), given.pop("port"), given.pop("dbname")
    rest = urlencode({**given, "host": host, "port": port})
    assert migrate(f"postgresql:///{name}?{rest}").replayed
    assert version(empty_url) == expected_version()


def test_a_malformed_url_is_reported_without_its_password() -> None:
    with pytest.raises(MigrateError, match="is not a URL like postgresql://") as error:
        migrate("postgres:/me:geheim@db/shop")
    assert "geheim" not in str(error.value)
    assert error.value.__cause__ is None  # psycopg's own message has the URL in it
    assert error.value.__suppress_context__


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A migrate that gives up after a few tries."""
    monkeypatch.setattr(migrate_module, "_TRIES", 3)
    monkeypatch.setattr(migrate_module, "_LOCK_SECONDS", 0.5)
    monkeypatch.setattr(migrate_module, "_TURN_SECONDS", 0.5)


@pytest.mark.usefixtures("hasty")
def test_a_replay_that_can_not_get_through_gives_up_and_says_who_is_in_the_way(
    database_url: str,
) -> None:
    with connect(database_url, autocommit=False, application_name="report") as reader:
        rows(reader, "select *, 'geheim' as secret from flashsale.item_status")
        with pytest.raises(MigrateError, match="somebody was in the way") as error:
            migrate(database_url, force=True)
        said = str(error.value)
        assert f"process {reader.info.backend_pid} (user flashsale, application report" in said
        assert "idle in transaction since" in said
        assert "select *, '…' as secret from flashsale.item_status" in said
        assert "lock on flashsale.item_status" in said
        assert "geheim" not in said
        assert "nothing was changed" in said
    assert version(database_url) == expected_version()
    assert migrate(database_url, force=True).replayed


@pytest.mark.usefixtures("hasty")
def test_a_prepared_transaction_in_the_way_is_named() -> None:
    with postgres_server(
        os.environ.get("FLASHSALE_TEST_PG_BIN"), {**FAST, "max_prepared_transactions": "1"}
    ) as server:
        migrate(server.url())
        with connect(server.url(), autocommit=False) as conn:
            rows(conn, "select * from flashsale.item_status")
            conn.execute("prepare transaction 'forgotten'")
        with pytest.raises(MigrateError, match="a prepared transaction"):
            migrate(server.url(), force=True)


@pytest.mark.usefixtures("hasty")
def test_migrations_are_rolled_back_with_a_replay_that_can_not_get_through(
    empty_url: str, tmp_path: Path, other_sql: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(empty_url)
    before = version(empty_url)
    folder = Path(shutil.copytree(migrations_folder(), tmp_path / "migrations"))
    (folder / "9998.first.sql").write_text("create table flashsale_data.first ();\n")
    (folder / "9999.second.sql").write_text("create table flashsale_data.second ();\n")
    monkeypatch.setattr(migrate_module, "migrations_folder", lambda: folder)
    append(other_sql / "item_status.sql", "-- another version")
    with connect(empty_url, autocommit=False) as reader, connect(empty_url) as conn:
        rows(reader, "select * from flashsale.item_status")
        with pytest.raises(MigrateError, match="nothing was changed"):
            migrate(empty_url)
        assert value(conn, "select to_regclass('flashsale_data.first')") is None
        assert version(empty_url) == before
        reader.rollback()
        report = migrate(empty_url)
        assert report.applied == ["9998.first", "9999.second"]
        assert report.replayed
        assert value(conn, "select count(*) from flashsale_data.second") == 0


@pytest.mark.usefixtures("hasty")
def test_whoever_holds_the_lock_of_migrate_is_named(
    empty_url: str, postgres: EmbeddedPostgres
) -> None:
    """Any role can take that lock by its number."""
    holder = connect(
        postgres.url(str(conninfo_to_dict(empty_url)["dbname"]), "postgres"),
        application_name="stranger",
    )
    with holder as other:
        other.execute("select pg_advisory_lock(7209001)")
        with pytest.raises(
            MigrateError,
            match=rf"process {other.info.backend_pid} \(user postgres, application stranger",
        ):
            migrate(empty_url)
    assert migrate(empty_url).replayed


@pytest.mark.parametrize(
    "newer",
    [
        "flashsale 99.0.0, api 1 to 2, 8 migrations, sql 0123456789abcdef",
        "flashsale 0.0.1, api 1 to 99, 8 migrations, sql 0123456789abcdef",
    ],
)
def test_a_database_of_a_newer_release_is_left_alone(empty_url: str, newer: str) -> None:
    migrate(empty_url)
    with connect(empty_url) as conn:
        conn.execute(f"comment on schema flashsale_data is '{newer}'")
        with pytest.raises(MigrateError, match="the database is of a newer version"):
            migrate(empty_url, force=True)
        assert version(empty_url) == newer


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
        "grant execute on function flashsale.restock(integer, integer) to flashsale_api",
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


def test_sequences_that_are_behind_are_advanced(database_url: str) -> None:
    """Logical replication carries rows and no sequences."""
    with connect(database_url) as conn:
        shoe = item(conn, stock=5)
        for name in ("ann", "bob", "cat"):
            reserve(conn, shoe, name)
        line = value(conn, "select line::text from flashsale_data.items where item_id = %s", shoe)
        item_ids = value(conn, "select pg_get_serial_sequence('flashsale_data.items', 'item_id')")
        jobs = value(conn, "select pg_get_serial_sequence('pgmq.q_payments', 'msg_id')")
        for sequence in (line, item_ids, jobs):
            conn.execute(f"alter sequence {sequence} restart")
        with pytest.raises(psycopg.errors.UniqueViolation):
            reserve(conn, shoe, "dan")
        conn.execute(f"alter sequence {line} restart")
        (shown,) = rows(conn, "select promise, item_id, detail from flashsale.violation")
        assert (shown.promise, shown.item_id) == ("every ticket is of its line", shoe)
        assert shown.detail == "ticket 3, the line has given out 0"
        assert sorted(migrate(database_url).advanced) == sorted([line, item_ids, jobs])
        assert reserve(conn, shoe, "dan").ticket == 4
        assert item(conn, sku="another") == shoe + 1
        assert rows(conn, "select * from flashsale.violation") == []
        assert migrate(database_url).advanced == []


def test_a_sequence_is_never_set_back(database_url: str) -> None:
    """A customer who takes a ticket while migrate looks gets one that nobody gets again."""
    with connect(database_url) as conn, connect(database_url, autocommit=False) as customer:
        shoe = item(conn, stock=5)
        reserve(conn, shoe, "ann")
        line = value(conn, "select line::text from flashsale_data.items where item_id = %s", shoe)
        conn.execute(f"alter sequence {line} restart")
        customer.execute(f"select nextval('{line}') from generate_series(1, 2)")
        advancing = Call(lambda: sequences.advance_to(psycopg.connect(database_url), line, 1))
        eventually(lambda: is_waited_for(conn, customer))
        customer.commit()
        advancing.result()
        assert reserve(conn, shoe, "dan").ticket == 3


def test_a_waiting_replay_lets_others_through(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader behind a waiting replay gets the view before the reader in front of it ends."""
    monkeypatch.setattr(migrate_module, "_LOCK_SECONDS", 0.2)
    with (
        connect(database_url, autocommit=False) as reader,
        connect(database_url) as other,
        connect(database_url) as watcher,
    ):
        rows(reader, "select * from flashsale.item_status")
        replay = Call(lambda: migrate(database_url, force=True))
        eventually(lambda: is_waited_for(watcher, reader))
        other.execute("set statement_timeout = '2s'")
        rows(other, "select * from flashsale.item_status")
        reader.rollback()
        assert replay.result().replayed
