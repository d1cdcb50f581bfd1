"""Brings a database up to date: pgmq, the tables (migrations/, by yoyo), then sql/ as a whole.

It is safe to run this from many processes at once, and again after a kill at any point. A session
advisory lock on a direct connection lets one process in at a time, and Postgres releases it when
the process dies. Each migration, and the replay of sql/, is one transaction.
"""

from __future__ import annotations

import importlib.resources
import time
import urllib.parse
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import msgspec
import psycopg
import yoyo
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend

from flashsale.database.version import (
    VERSION_QUERY,
    expected_version,
    migrations_folder,
    sql_files,
)
from flashsale.refusals import CommandError
from flashsale.settings import without_password

OLDEST_SERVER = 150000
_REPLAY_LOCK_SECONDS = 2
_REPLAY_TRIES = 15
_LOCK = 7_209_001  # one number for all of flashsale; a session lock, held only while migrating


class MigrateError(CommandError):
    """The database could not be brought up to date; the message says what to do."""


class MigrateReport(msgspec.Struct, frozen=True):
    """What a migrate did."""

    applied: list[str]
    """Names of the migrations that were new."""
    replayed: bool
    """Whether sql/ was replayed."""


def migrate(database_url: str, *, force: bool = False) -> MigrateReport:
    """Brings the database up to date. force: replay sql/ even if it has not changed.

    Errors: MigrateError for an unreachable database, a server before 15, missing rights, or a
    session that keeps what the replay replaces.
    """
    try:
        psycopg.conninfo.conninfo_to_dict(database_url)
    except psycopg.ProgrammingError:  # its message has the URL in it, and the URL a password
        raise MigrateError(
            "FLASHSALE_DATABASE_URL is not a URL like postgresql://user:password@host:5432/name"
        ) from None
    try:
        with psycopg.connect(database_url, autocommit=True, connect_timeout=10) as conn:
            if conn.info.server_version < OLDEST_SERVER:
                raise MigrateError(
                    f"PostgreSQL {conn.info.server_version // 10000} is too old: flashsale needs "
                    "PostgreSQL 15 or later"
                )
            conn.execute("set lock_timeout = 0")
            conn.execute("select pg_advisory_lock(%s)", [_LOCK])
            return MigrateReport(
                applied=_install_tables(conn, database_url), replayed=_install_api(conn, force)
            )
    except psycopg.OperationalError as error:
        raise MigrateError(
            f"the database {without_password(database_url)} could not be used: {error}".strip()
        ) from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise MigrateError(
            f"{error.diag.message_primary}: migrate as the owner of the database, a role with "
            "CREATEROLE"
        ) from error


def _install_tables(conn: psycopg.Connection[Any], database_url: str) -> list[str]:
    _install_extensions(conn)
    conn.execute("create schema if not exists flashsale_data")
    before = _applied(conn)
    if unknown := sorted(set(before) - {file.stem for file in migrations_folder().glob("*.sql")}):
        raise MigrateError(
            f"this version does not know migrations that the database has ({', '.join(unknown)}): "
            "it was made by a newer version, or before the first release"
        )
    backend = _Backend(yoyo.connections.parse_uri(_yoyo_url(database_url)), "_yoyo_migration")
    try:
        backend.init_database()
        # yoyo's own lock is a row that a kill leaves behind. We hold our lock, so no other process
        # can be migrating, and the row can be removed.
        backend.break_lock()
        new = backend.to_apply(yoyo.read_migrations(str(migrations_folder())))
        with backend.lock(), backend.transaction():
            backend.apply_migrations(new)
    finally:
        backend.connection.close()
    return [name for name in _applied(conn) if name not in before]


class _Backend(PostgresqlPsycopgBackend):  # type: ignore[misc]
    """Makes yoyo use one connection for everything.

    By default yoyo runs a migration on one connection and marks it as applied on another, so that a
    kill in between leaves it applied but not marked. On one connection both are one transaction.
    """

    def copy(self) -> AbstractContextManager[_Backend]:
        return nullcontext(self)


def _applied(conn: psycopg.Connection[Any]) -> list[str]:
    if not conn.execute("select to_regclass('flashsale_data._yoyo_migration')").fetchone()[0]:  # type: ignore[index]
        return []
    found = conn.execute("select migration_id from flashsale_data._yoyo_migration order by 1")
    return [row[0] for row in found]


def _install_extensions(conn: psycopg.Connection[Any]) -> None:
    """Installs pgmq as an extension where the server has it, else by its SQL; and pg_cron."""
    available = {
        row[0] for row in conn.execute("select name from pg_available_extensions").fetchall()
    }
    there = conn.execute("select to_regclass('pgmq.meta')").fetchone() != (None,)
    if not there and not ("pgmq" in available and _create_pgmq_extension(conn)):
        with conn.transaction():
            source = importlib.resources.files("pgmq.sql") / "pgmq.sql"
            conn.execute("create schema if not exists pgmq")
            conn.execute(source.read_bytes())
    if "pg_cron" not in available:
        return
    superuser = conn.execute("select rolsuper from pg_roles where rolname = current_user")
    if superuser.fetchone() != (True,):
        return  # only superusers may see its settings, so an operator sets it up
    here = conn.execute("select current_setting('cron.database_name', true) = current_database()")
    if here.fetchone() == (True,):
        conn.execute("create extension if not exists pg_cron")


def _create_pgmq_extension(conn: psycopg.Connection[Any]) -> bool:
    """Creates the extension. Returns False if that needs a superuser."""
    try:
        with conn.transaction():
            conn.execute("create extension pgmq")
    except psycopg.errors.InsufficientPrivilege:
        return False
    return True


def _install_api(conn: psycopg.Connection[Any], force: bool) -> bool:
    """Replays sql/ in one transaction, if it is not what the database has."""
    if not force and conn.execute(VERSION_QUERY).fetchone() == (expected_version(),):
        return False
    for left in reversed(range(_REPLAY_TRIES)):
        try:
            with conn.transaction():
                _replay(conn)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            if not left:
                raise MigrateError(
                    "sql/ could not be replayed: a transaction has been using a view or function "
                    "of flashsale all the time. Find it in pg_stat_activity, end it, and migrate "
                    "again; nothing was changed"
                ) from None
            time.sleep(0.5)
        except psycopg.errors.DependentObjectsStillExist as error:
            raise MigrateError(
                f"{error.diag.message_primary}: {error.diag.message_detail}. Change or drop what "
                "depends on it, and migrate again; nothing was changed"
            ) from None
        else:
            return True
    raise AssertionError("the last try returns or raises")


def _replay(conn: psycopg.Connection[Any]) -> None:
    # A session that reads a view makes us wait for its lock, and sessions that come after us wait
    # for ours. The lock_timeout lets them go first; then we try again.
    conn.execute(f"set local lock_timeout = '{_REPLAY_LOCK_SECONDS}s'")
    conn.execute("set local client_min_messages = warning")
    for _name, text in sql_files():
        conn.execute(text.encode())
    conn.execute(f"comment on schema flashsale is '{expected_version()}'")


def _yoyo_url(database_url: str) -> str:
    """The same database for yoyo, with its bookkeeping beside our tables.

    All of it is in the URL's query, because yoyo's parser knows neither sockets nor lists of hosts.
    """
    parts = psycopg.conninfo.conninfo_to_dict(database_url) | {"schema": "flashsale_data"}
    return f"postgresql+psycopg:///?{urllib.parse.urlencode(parts)}"
