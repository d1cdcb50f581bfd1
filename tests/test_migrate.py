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
from flashsale.database.migrate import MigrateError, migrate
from flashsale.database.version import (
    VERSION_QUERY,
    expected_version,
    migrations_folder,
    sql_files,
    sql_folder,
)
from flashsale.dev.postgres import EmbeddedPostgres
from support import Call, connect, eventually, item, reserve, rows, value

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
def a_function_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A version of sql/ that has no flashsale.old() any more."""
    folder = tmp_path / "sql"
    shutil.copytree(sql_folder(), folder)
    with (folder / "dropped.sql").open("a") as dropped:
        dropped.write("drop function if exists flashsale.old();\n")
    monkeypatch.setenv("FLASHSALE_SQL_DIR", str(folder))
    for read_once in (sql_files, expected_version):
        read_once.cache_clear()
    yield
    for read_once in (sql_files, expected_version):
        read_once.cache_clear()


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


def test_objects_of_others_that_depend_on_ours_survive_a_replay(database_url: str) -> None:
    with connect(database_url) as conn:
        conn.execute("create schema theirs")
        conn.execute("create view theirs.report as select sku, paid from flashsale.item_status")
        conn.execute("create table theirs.seen (told flashsale.order_row)")
        conn.execute("create role theirs_reader")
        conn.execute("grant select on flashsale.violation to theirs_reader")
        item(conn)
        assert migrate(database_url, force=True).replayed
        assert len(rows(conn, "select * from theirs.report")) == 1
        assert value(
            conn, "select has_table_privilege('theirs_reader', 'flashsale.violation', 'select')"
        )
        conn.execute("revoke select on flashsale.violation from theirs_reader")
        conn.execute("drop role theirs_reader")
        conn.execute("drop schema theirs cascade")


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


def test_a_reader_in_the_way_delays_and_does_not_break_the_replay(database_url: str) -> None:
    with connect(database_url, autocommit=False) as reader:
        rows(reader, "select * from flashsale.item_status")
        migrating = start_migrating(database_url)
        with connect(database_url) as conn:
            conn.execute("comment on schema flashsale is 'old'")
        reader.rollback()
        assert "sql/" in migrating.communicate(timeout=60)[0]


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


def test_a_replay_that_can_not_get_through_gives_up_and_changes_nothing(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate_module, "_REPLAY_TRIES", 2)
    monkeypatch.setattr(migrate_module, "_REPLAY_LOCK_SECONDS", 0.2)
    with connect(database_url, autocommit=False) as reader:
        rows(reader, "select * from flashsale.item_status")
        with pytest.raises(MigrateError, match="pg_stat_activity"):
            migrate(database_url, force=True)
    assert version(database_url) == expected_version()
    assert migrate(database_url, force=True).replayed


def test_a_waiting_replay_lets_others_through(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader behind a waiting replay gets the view before the reader in front of it ends."""
    monkeypatch.setattr(migrate_module, "_REPLAY_LOCK_SECONDS", 0.2)
    with (
        connect(database_url, autocommit=False) as reader,
        connect(database_url) as other,
        connect(database_url) as watcher,
    ):
        rows(reader, "select * from flashsale.item_status")
        replay = Call(lambda: migrate(database_url, force=True))
        eventually(
            lambda: value(
                watcher,
                "select exists "
                "(select from pg_stat_activity where %s = any (pg_blocking_pids(pid)))",
                reader.info.backend_pid,
            )
        )
        other.execute("set statement_timeout = '2s'")
        rows(other, "select * from flashsale.item_status")
        reader.rollback()
        assert replay.result().replayed
