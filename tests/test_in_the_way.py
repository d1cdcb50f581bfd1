"""Sessions that are in the way of migrate: it is polite, gives up, and names them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from flashsale.database import migrate as migrate_module
from flashsale.database.migrate import MigrateError, migrate
from flashsale.database.version import (
    expected_version,
    migrations_folder,
)
from flashsale.dev.postgres import EmbeddedPostgres
from flashsale.testing.servers import FAST
from migrate_support import append, empty_url_fixture, is_waited_for, other_sql_fixture, version  # noqa: F401 - fixtures
from support import (
    Call,
    connect,
    eventually,
    postgres_server,
    rows,
    value,
)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A migrate that gives up after a few tries."""
    monkeypatch.setattr(migrate_module, "_TRIES", 3)
    monkeypatch.setattr(migrate_module, "_LOCK_SECONDS", 0.5)
    monkeypatch.setattr(migrate_module, "_TURN_SECONDS", 0.5)


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
@pytest.mark.slow
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
@pytest.mark.slow
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


def test_migrations_are_rolled_back_with_a_replay_that_fails(
    empty_url: str, tmp_path: Path, other_sql: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(empty_url)
    before = version(empty_url)
    folder = Path(shutil.copytree(migrations_folder(), tmp_path / "migrations"))
    (folder / "9998.first.sql").write_text("create table flashsale_data.first ();\n")
    monkeypatch.setattr(migrate_module, "migrations_folder", lambda: folder)
    append(other_sql / "item_status.sql", "select 1 / 0;")
    with pytest.raises(psycopg.errors.DivisionByZero):
        migrate(empty_url)
    with connect(empty_url) as conn:
        assert value(conn, "select to_regclass('flashsale_data.first')") is None
    assert version(empty_url) == before


def test_views_are_locked_before_a_migration_locks_their_tables(
    empty_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As readers do: a reader that comes in between would have a view, and wait for a table."""
    migrate(empty_url)
    folder = Path(shutil.copytree(migrations_folder(), tmp_path / "migrations"))
    (folder / "9998.locks.sql").write_text(
        "create table flashsale_data.locks as "
        "select l.relation from pg_locks l where l.pid = pg_backend_pid() "
        "and l.locktype = 'relation' and l.mode = 'AccessExclusiveLock';\n"
    )
    monkeypatch.setattr(migrate_module, "migrations_folder", lambda: folder)
    migrate(empty_url)
    with connect(empty_url) as conn:
        unlocked = rows(
            conn,
            "select c.relname from pg_class c "
            "where c.relnamespace = 'flashsale'::regnamespace and c.relkind = 'v' "
            "and c.oid not in (select relation from flashsale_data.locks)",
        )
    assert unlocked == []


@pytest.mark.timeout(30)
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
