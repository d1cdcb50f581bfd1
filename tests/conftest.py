"""A Postgres for the session, a migrated template, and a clone of it for each test.

FLASHSALE_TEST_PG_BIN: folder of another server's binaries, such as /usr/lib/postgresql/15/bin; the
default is the embedded PostgreSQL 18.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
from pytest_postgresql.janitor import DatabaseJanitor

from dev_support import Dev, running
from flashsale.database.migrate import migrate
from flashsale.dev.postgres import EmbeddedPostgres
from support import (
    Connection,
    cluster_folder,
    connect,
    put_cluster,
    rows,
    server_folder,
    value,
)

FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "autovacuum": "off"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fail-on-skip", action="store_true", help="a skipped test fails the run")

    parser.addoption("--server", help="folder:port of a running server; prove/mutants.py keeps one")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if config.getoption("--fail-on-skip") and terminalreporter.stats.get("skipped"):
        terminalreporter.write_line("skips are failures here (--fail-on-skip)", red=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if (
        session.config.getoption("--fail-on-skip")
        and reporter is not None
        and reporter.stats.get("skipped")
    ):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session", autouse=True)
def no_power_cut() -> Iterator[None]:
    """initdb ends with a sync of all disks: it would wait for what everybody else has written."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "sync", lambda: None)
        yield


@pytest.fixture(scope="session")
def postgres(pytestconfig: pytest.Config) -> Iterator[EmbeddedPostgres]:
    """The session's server; one a worker, so that nobody shares a lock table or a queue."""
    if shared := pytestconfig.getoption("--server"):
        folder, port = shared.split(":")
        yield EmbeddedPostgres(folder, port=int(port))  # it runs already
        return
    bin_dir = os.environ.get("FLASHSALE_TEST_PG_BIN")
    with cluster_folder(bin_dir) as folder, EmbeddedPostgres(folder, bin_dir, FAST) as server:
        yield server


@pytest.fixture(scope="session")
def template(postgres: EmbeddedPostgres) -> str:
    """A migrated database, to be cloned."""
    with psycopg.connect(postgres.url("postgres", "postgres"), autocommit=True) as admin:
        admin.execute("alter database flashsale with allow_connections true")  # of a shared server
    migrate(postgres.url())
    with psycopg.connect(postgres.url("postgres", "postgres"), autocommit=True) as admin:
        admin.execute("alter database flashsale with is_template true allow_connections false")
    return "flashsale"


class Databases:
    """A database that one test after the other uses, as long as it can be made as new.

    To empty one takes a tenth of the time of a clone. A test that leaves another schema behind
    costs the next one a clone.
    """

    def __init__(self, postgres: EmbeddedPostgres, template: str) -> None:
        self._postgres = postgres
        self._template = template
        self._janitor: DatabaseJanitor | None = None
        self._schema = ""

    def take(self) -> str:
        """The URL of a migrated database with nothing in it."""
        if self._janitor is None:
            admin = psycopg.conninfo.conninfo_to_dict(self._postgres.url("postgres", "postgres"))
            self._janitor = DatabaseJanitor(
                user="postgres",
                password=str(admin["password"]),
                host="127.0.0.1",
                port=self._postgres.port,
                dbname=f"t{uuid.uuid4().hex[:12]}",
                template_dbname=self._template,
            )
            self._janitor.init()
            with connect(self._postgres.url("postgres", "postgres")) as superuser:
                superuser.execute(
                    f"alter database {self._janitor.dbname} owner to flashsale"  # type: ignore[call-overload]
                )
            with connect(self._postgres.url(self._janitor.dbname, "postgres")) as conn:
                conn.execute(AS_NEW)
                self._schema = value(conn, SCHEMA)
        return self._postgres.url(self._janitor.dbname)

    def give_back(self) -> None:
        """Checks the promises, and makes the database as new or drops it."""
        assert self._janitor is not None
        broken: list[Any] = []
        try:
            url = self._postgres.url(self._janitor.dbname, "postgres")
            with connect(url) as conn:
                broken = rows(conn, "select * from flashsale.violation")
                if not broken:
                    conn.execute(AS_NEW)
                    if value(conn, SCHEMA) == self._schema:
                        return
        except psycopg.Error:
            if not broken:
                self.drop()  # a test that leaves the database unusable says so in its own words
                raise
        self.drop()
        assert broken == []

    def drop(self) -> None:
        if self._janitor is not None:
            self._janitor.drop()
            self._janitor = None


SCHEMA = """
select md5(string_agg(t.thing, ' ' order by t.thing))
from (
  select concat(p.oid::regprocedure, p.prosrc, p.proconfig, p.proacl)
  from pg_proc p
  where p.pronamespace not in ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
  union all
  select concat(c.oid::regclass, c.relacl, c.reloptions)
  from pg_class c
  where c.relnamespace not in ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
    and c.relkind in ('r', 'v', 'S', 'i')
  union all
  select t.tgname from pg_trigger t
  union all
  select concat(n.nspname, n.nspacl, obj_description(n.oid, 'pg_namespace'))
  from pg_namespace n
  where n.nspname !~ '^pg_(toast_)?temp'
  union all
  select concat(d.datname, d.datconnlimit, d.datacl, s.setconfig)
  from pg_database d
  left join pg_db_role_setting s on s.setdatabase = d.oid
  where d.datname = current_database()
) t (thing)
"""
"""Everything that a test might leave changed: functions, relations, grants, settings, the version.
concat: what is null hides nothing."""

AS_NEW = """
do $$
declare
  v_name text;
begin
  perform pg_terminate_backend(a.pid) from pg_stat_activity a
  where a.datname = current_database() and a.pid <> pg_backend_pid();
  for v_name in
    select c.oid::regclass::text from pg_class c
    where c.relkind = 'r'
      and (c.relnamespace = 'flashsale_data'::regnamespace and c.relname !~ '^_?yoyo'
        or c.relname in ('q_payments', 'q_notifications', 'a_payments', 'a_notifications'))
  loop
    if pg_relation_size(v_name) > 200000 then
      execute 'truncate ' || v_name;
    else
      execute 'delete from ' || v_name;
    end if;
  end loop;
  for v_name in
    select c.oid::regclass::text from pg_class c
    where c.relkind = 'S' and c.relnamespace = 'flashsale_data'::regnamespace
  loop
    if v_name ~ '[.]line_' then
      execute 'drop sequence ' || v_name;
    else
      perform setval(q.seqrelid::regclass, q.seqstart, false)
      from pg_sequence q where q.seqrelid = v_name::regclass;
    end if;
  end loop;
  drop table if exists flashsale_data.test_clock;
  create or replace function flashsale.clock() returns timestamptz
    language sql volatile parallel safe security invoker as 'select pg_catalog.clock_timestamp()';
end
$$
"""


@pytest.fixture(scope="session")
def databases(postgres: EmbeddedPostgres, template: str) -> Iterator[Databases]:
    pool = Databases(postgres, template)
    yield pool
    pool.drop()


@pytest.fixture
def database_url(databases: Databases) -> Iterator[str]:
    """A migrated, empty database; the promises are checked when the test is over."""
    yield databases.take()
    databases.give_back()


@pytest.fixture
def db(database_url: str) -> Iterator[Connection]:
    """An autocommit session as the owner of the database."""
    conn = connect(database_url)
    try:
        yield conn
    finally:
        conn.close()


class Clock:
    """The test database's clock: stands still, and goes where it is told."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        conn.execute("create table flashsale_data.test_clock (at timestamptz not null)")
        conn.execute(
            "insert into flashsale_data.test_clock values (date_trunc('second', clock_timestamp()))"
        )
        conn.execute(
            "create or replace function flashsale.clock() returns timestamptz language sql "
            "volatile security definer as 'select at from flashsale_data.test_clock'"
        )

    def at(self, seconds: float = 0) -> datetime:
        """The moment so many seconds from now."""
        (now,) = self._conn.execute("select flashsale.clock()").fetchone() or (None,)
        assert isinstance(now, datetime)
        return now + timedelta(seconds=seconds)

    def advance(self, seconds: float) -> None:
        self.set(self.at(seconds))

    def set(self, moment: datetime, seconds: float = 0) -> None:
        """Goes to a moment, or to so many seconds after it."""
        self._conn.execute(
            "update flashsale_data.test_clock set at = %s", [moment + timedelta(seconds=seconds)]
        )


@pytest.fixture
def clock(db: Connection) -> Clock:
    return Clock(db)


@pytest.fixture(scope="module")
def dev() -> Iterator[Dev]:
    """The whole service, as `flashsale dev` runs it; a module's tests share it."""
    with server_folder() as folder:
        put_cluster(folder / "data")
        with running(folder) as dev:
            yield dev
