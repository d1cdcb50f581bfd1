"""Brings a database up to date: pgmq, the tables (migrations/, by yoyo), and sql/.

All of that is one transaction: whatever fails, nothing was changed. (Exceptions are values of
enums, see ENUM_VALUES, and indexes of big tables, see database.indexes.) Of sql/ it replays only
what differs from what the database has, so that nobody who is served meanwhile notices. It repairs
what a dump does not contain, and sequences that are behind their rows.

It is safe to run this from many processes at once, and again after a kill at any point. A session
advisory lock lets one process in at a time, and Postgres releases it when the process dies.
"""

from __future__ import annotations

import importlib.resources
import time
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import msgspec
import psycopg
import yoyo
from psycopg import sql
from yoyo import internalmigrations
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend

from flashsale.database import in_the_way, indexes, sequences
from flashsale.database.version import (
    API,
    VERSION_QUERY,
    digest,
    expected_version,
    migrations_folder,
    parsed,
    sql_files,
)
from flashsale.refusals import CommandError
from flashsale.settings import without_password

OLDEST_SERVER = 150000
_LOCK = 7_209_001  # one number for all of flashsale; a session lock, held only while migrating
_TURN_SECONDS = 60.0  # how long to wait for another migrate

# A session that uses a table or a view makes us wait for its lock, and sessions that come after us
# wait for ours. So we wait for a moment only, roll back, let the others go first, and try again.
_TRIES = 32
_LOCK_SECONDS = 0.2  # below Postgres's deadlock_timeout of 1 s: no caller is a deadlock's victim
# An autovacuum gives way to a session that has waited for deadlock_timeout.
_LONG_LOCK_SECONDS = 1.5
_LONG_EVERY = 8
_PAUSE_SECONDS = 0.5

# A reader locks a view and then its tables, and so do we if there are new migrations. In the other
# order a reader that comes while we have a table locks a view that sql/ is to replace, and waits
# for the table: a deadlock. (LOCK TABLE would lock the tables of a view in the same statement. To
# set the owner changes nothing, and locks the view only. A view that reads another one is younger.)
_LOCK_VIEWS = """
do $$
declare
  v_view regclass;
begin
  for v_view in
    select c.oid from pg_class c
    where c.relnamespace = to_regnamespace('flashsale') and c.relkind = 'v'
    order by c.oid desc
  loop
    execute format('alter view %s owner to current_user', v_view);
  end loop;
end
$$
"""

# These files are replayed each time, and change nothing if there is nothing to change. What they
# make belongs to the cluster, or holds for one cluster only, so it is not in a dump.
_EACH_TIME = {"roles.sql", "schedule.sql"}
_RIGHTS = "grants.sql"

ENUM_VALUES = {"order_status": ("settling", "refunded", "entered")}
"""What migrations need that the types of earlier migrations don't have. Postgres lets nobody use a
value of an enum in the transaction that adds it, so these are added before, each in a transaction
of its own. A value that nothing uses does no harm, if all the rest is rolled back."""
_NEEDS_ENUM_VALUES = "0011.money"
"""The first migration that uses one. An empty database gets those before it, which make the types,
in a transaction of their own; if the rest fails, the next migrate goes on from there."""

# A launcher of pg_cron that reads the list of jobs while its extension is being created takes it to
# be empty, and is not told again (1.4.2): such a database was never swept by it. Only a superuser
# can have created the extension just now, and only a superuser may reload.
_WAKE_PG_CRON = """
do $$
begin
  if exists (select from pg_extension where extname = 'pg_cron')
    and has_function_privilege('pg_reload_conf()', 'execute')
  then
    perform pg_reload_conf();
  end if;
end
$$
"""

# The functions and views, and who may use them. A dump that was restored by halves, or where there
# were no roles, differs in this from what was installed.
OBJECTS_QUERY = """
with rights (object, acl) as (
  select format('%s(%s)', p.proname, oidvectortypes(p.proargtypes)),
    coalesce(p.proacl, acldefault('f', p.proowner))
  from pg_proc p
  where p.pronamespace = 'flashsale'::regnamespace
  union all
  select c.relname, coalesce(c.relacl, acldefault('r', c.relowner))
  from pg_class c
  where c.relnamespace = 'flashsale'::regnamespace and c.relkind = 'v'
  union all
  select 'schema ' || n.nspname, n.nspacl
  from pg_namespace n
  where n.nspname in ('flashsale', 'flashsale_data')
  union all
  select 'temporary tables', coalesce(d.datacl, acldefault('d', d.datdba))
  from pg_database d
  where d.datname = current_database()
)
select string_agg(format('%s: %s', r.object, (
    select string_agg(concat(o.rolname, ' ', a.privilege_type), ', '
      order by o.rolname, a.privilege_type)
    from aclexplode(r.acl) a
    left join pg_roles o on o.oid = a.grantee
    where (a.grantee = 0 or o.rolname like 'flashsale\\_%')
      and (r.object <> 'temporary tables' or a.privilege_type = 'TEMPORARY')
  )), e'\\n' order by r.object)
from rights r
"""


class MigrateError(CommandError):
    """The database could not be brought up to date; the message says what to do."""


class MigrateReport(msgspec.Struct, frozen=True):
    """What a migrate did."""

    applied: list[str]
    """Names of the migrations that were new."""
    replayed: bool
    """Whether anything of sql/ was replayed."""
    advanced: list[str]
    """Names of the sequences that were behind the rows of their table."""


def migrate(database_url: str, *, force: bool = False) -> MigrateReport:
    """Brings the database up to date. force: replay all of sql/ even if it has not changed.

    Errors: MigrateError for an unreachable database, a server before 15, missing rights, a database
    of a newer version, or a session that keeps what is to be changed.
    """
    try:
        psycopg.conninfo.conninfo_to_dict(database_url)
    except psycopg.ProgrammingError:  # its message has the URL in it, and the URL a password
        raise MigrateError(
            "FLASHSALE_DATABASE_URL is not a URL like postgresql://user:password@host:5432/name"
        ) from None
    try:
        with psycopg.connect(
            database_url,
            autocommit=True,
            connect_timeout=10,
            fallback_application_name="flashsale-migrate",
        ) as conn:
            if conn.info.server_version < OLDEST_SERVER:
                raise MigrateError(
                    f"PostgreSQL {conn.info.server_version // 10000} is too old: flashsale needs "
                    "PostgreSQL 15 or later"
                )
            conn.execute("set statement_timeout = 0")
            _wait_for_our_turn(conn)
            report = _try_until_nobody_is_in_the_way(conn, database_url, force)
            conn.execute(_WAKE_PG_CRON)
            return report
    except psycopg.OperationalError as error:
        raise MigrateError(
            f"the database {without_password(database_url)} could not be used: {error}".strip()
        ) from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise MigrateError(
            f"{error.diag.message_primary}: migrate as the owner of the database, a role with "
            "CREATEROLE"
        ) from error
    except psycopg.errors.ReadOnlySqlTransaction:
        raise MigrateError(
            f"the database {without_password(database_url)} is read-only: migrate on the primary"
        ) from None
    except (
        psycopg.errors.DependentObjectsStillExist,
        psycopg.errors.DependentPrivilegeDescriptorsStillExist,
    ) as error:
        facts = f"{error.diag.message_primary}: {error.diag.message_detail or ''}".strip(": ")
        raise MigrateError(
            f"{facts}. Change or drop what depends on it, and migrate again; nothing was changed"
        ) from None


def _wait_for_our_turn(conn: psycopg.Connection[Any]) -> None:
    """Takes the lock, and asks for it again and again: a statement that waits has a snapshot."""
    deadline = time.monotonic() + _TURN_SECONDS
    while conn.execute("select pg_try_advisory_lock(%s)", [_LOCK]).fetchone() != (True,):
        if time.monotonic() > deadline:
            raise MigrateError(
                f"another session holds the lock of migrate for more than {_TURN_SECONDS:g} s: "
                f"{in_the_way.holders(conn, _LOCK)}. If it is a migrate, let it end; nothing was "
                "changed"
            )
        time.sleep(0.1)


def _try_until_nobody_is_in_the_way(
    conn: psycopg.Connection[Any], database_url: str, force: bool
) -> MigrateReport:
    applied: list[str] = []
    replayed = False
    seen: list[str] = []
    before = _applied(conn)
    with ExitStack() as stack:
        for n in range(1, _TRIES + 1):
            seconds = _LOCK_SECONDS if n % _LONG_EVERY else _LONG_LOCK_SECONDS
            conn.execute(f"set lock_timeout = '{seconds}s'")
            try:
                if not (applied or replayed):
                    _add_enum_values(conn)
                    indexes.prepare(conn)
                    with conn.transaction():
                        replayed = _bring_up_to_date(conn, force)
                    applied = [name for name in _applied(conn) if name not in before]
                if not indexes.clean_up(conn):
                    raise MigrateError(
                        "the database is up to date, but for an index of the release before, which "
                        "keeps customers from buying again: a transaction is still open that "
                        f"began before. {'; '.join(seen) or 'See pg_stat_activity'}. End it, and "
                        "migrate again"
                    )
                return MigrateReport(applied, replayed, sequences.advance(conn))
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
                pass
            except psycopg.errors.InternalError_ as error:
                # Somebody else grants or drops something at this moment.
                if "concurrently" not in str(error):
                    raise
            if n == 1:
                pid = conn.info.backend_pid
                seen = stack.enter_context(in_the_way.watching(database_url, pid))
            time.sleep(_PAUSE_SECONDS)
    raise MigrateError(
        f"somebody was in the way in each of {_TRIES} tries: "
        f"{'; '.join(seen) or 'see pg_stat_activity'}. End that transaction, and migrate again"
        + ("" if applied or replayed else "; nothing was changed")
    )


def _add_enum_values(conn: psycopg.Connection[Any]) -> None:
    """Adds the values that are missing in ENUM_VALUES, and commits them.

    Errors: MigrateError for a database of a newer version.
    """
    _refuse_a_newer_database(conn)
    for name, values in ENUM_VALUES.items():
        there = conn.execute(
            "select array(select e.enumlabel::text from pg_enum e where e.enumtypid = t.oid) "
            "from to_regtype(%s) t (oid) where t.oid is not null",
            [f"flashsale_data.{name}"],
        ).fetchone()
        if there is None:
            with conn.transaction():
                apply_migrations(conn, before=_NEEDS_ENUM_VALUES)
        for value in values:
            if there is None or value not in there[0]:
                conn.execute(
                    sql.SQL("alter type {} add value if not exists {}").format(
                        sql.Identifier("flashsale_data", name), sql.Literal(value)
                    )
                )


def apply_migrations(conn: psycopg.Connection[Any], before: str | None = None) -> None:
    """Applies new migrations, in the transaction of the caller. before: only those before it."""
    conn.execute("set local client_min_messages = warning")
    _install_extensions(conn)
    conn.execute("create schema if not exists flashsale_data")
    backend = _Backend(conn)
    backend.prepare()
    found = yoyo.read_migrations(str(migrations_folder()))
    new = backend.to_apply(found.filter(lambda m: before is None or m.id < before))
    if new:
        conn.execute(_LOCK_VIEWS)
    backend.apply_migrations(new)
    conn.execute("set local search_path to default")


def _bring_up_to_date(conn: psycopg.Connection[Any], force: bool) -> bool:
    """Everything in the transaction of the caller. Returns whether it replayed."""
    apply_migrations(conn)
    replayed = _replay(conn, force)
    if conn.execute(VERSION_QUERY).fetchone() != (expected_version(),):
        conn.execute(f"comment on schema flashsale_data is '{expected_version()}'")
        replayed = True
    return replayed


def _refuse_a_newer_database(conn: psycopg.Connection[Any]) -> None:
    ours = {file.stem for file in migrations_folder().glob("*.sql")}
    if unknown := sorted(set(_applied(conn)) - ours):
        raise MigrateError(
            f"this version does not know migrations that the database has ({', '.join(unknown)}): "
            "it was made by a newer version, or before the first release"
        )
    row = conn.execute(VERSION_QUERY).fetchone()
    found, us = parsed(row[0] if row else ""), parsed(expected_version())
    assert us is not None
    if found and (found.release > us.release or found.newest_api > API):
        raise MigrateError(
            f"the database is of a newer version: it is {row[0]}, and this is "  # type: ignore[index]
            f"{expected_version()}. Nothing was changed"
        )


class _Backend(PostgresqlPsycopgBackend):  # type: ignore[misc]
    """Makes yoyo work on our connection and in our transaction, of which its own are savepoints.

    By default yoyo opens connections, and commits each migration by itself. Its lock is a row that
    a kill leaves behind; we hold a lock of our own and don't use it.
    """

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self._ours = conn
        super().__init__(yoyo.connections.parse_uri("postgresql+psycopg:///"), "_yoyo_migration")
        self._in_transaction = True

    def connect(self, dburi: object) -> psycopg.Connection[Any]:
        return self._ours

    def init_connection(self, connection: psycopg.Connection[Any]) -> None:
        connection.execute("set local search_path to flashsale_data")

    def copy(self) -> AbstractContextManager[_Backend]:
        return nullcontext(self)

    def prepare(self) -> None:
        """Makes or upgrades yoyo's own tables."""
        if self.lock_table not in self.list_tables():
            self.create_lock_table()
        self.ensure_internal_schema_updated()

    def ensure_internal_schema_updated(self) -> None:
        """The same as yoyo's, without its commit."""
        if internalmigrations.needs_upgrading(self):
            internalmigrations.upgrade(self)


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


def _replay(conn: psycopg.Connection[Any], force: bool) -> bool:
    """Replays what differs of sql/. Returns whether anything did.

    A file is replayed if its text has changed; all of them, if the functions, views and rights are
    not those that the last migrate left. The rights are set anew if they changed by that: the
    public may call a new function.
    """
    before = dict(conn.execute("select part, digest from flashsale_data.installed").fetchall())
    now = {name: digest(text) for name, text in sql_files()}
    whole = force or before.get("objects") != _objects(conn)
    changed = {name for name in now if whole or before.get(name) != now[name]}
    for name, text in sql_files():
        if name == _RIGHTS and changed and before.get("objects") != _objects(conn):
            changed.add(name)
        if name in changed or name in _EACH_TIME:
            conn.execute(text.encode())
    if changed:
        now["objects"] = _objects(conn)
        conn.execute("delete from flashsale_data.installed")
        conn.cursor().executemany(
            "insert into flashsale_data.installed (part, digest) values (%s, %s)", now.items()
        )
    return bool(changed)


def _objects(conn: psycopg.Connection[Any]) -> str:
    (row,) = conn.execute(OBJECTS_QUERY).fetchall()
    return digest(row[0] or "")
