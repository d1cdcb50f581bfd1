"""Migrating: from many processes at once, again, from older versions, and after a crash."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from urllib.parse import urlencode

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from flashsale.database.migrate import MigrateError, migrate
from flashsale.database.version import (
    expected_version,
    migrations_folder,
    sql_files,
)
from flashsale.dev.postgres import EmbeddedPostgres
from migrate_support import empty_url_fixture, version  # noqa: F401 - fixtures
from support import (
    connect,
    eventually,
    item,
    reserve,
    value,
)

MIGRATIONS = len(list((Path(__file__).parents[1] / "migrations").glob("*.sql")))


def start_migrating(url: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "flashsale", "migrate"],
        env={**os.environ, "FLASHSALE_DATABASE_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


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
    assert migrate(empty_url).applied == ["0006.queues"]  # yoyo would wait for it, and give up


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


def test_a_standby_is_an_error_of_one_line(empty_url: str) -> None:
    joint = "&" if "?" in empty_url else "?"
    with pytest.raises(MigrateError, match="is read-only: migrate on the primary"):
        migrate(f"{empty_url}{joint}options=-c%20default_transaction_read_only%3Don")


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
