"""A database per test, made from a migrated template, and the check that no promise is broken."""

from __future__ import annotations

import uuid
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from pytest_postgresql.janitor import DatabaseJanitor

from flashsale.dev.postgres import EmbeddedPostgres
from flashsale.testing.calls import Connection, connect, value, violations


class Databases:
    """Gives a migrated, empty database to each test in turn.

    reuse: empties the same database for as long as it can be made as new, which takes a tenth of
    the time of a clone. A test that leaves another schema behind costs the next one a clone. Only
    for a template with nothing but flashsale in it: tables of others are not emptied.
    """

    def __init__(self, server: EmbeddedPostgres, template: str, *, reuse: bool) -> None:
        self._server = server
        self._template = template
        self._reuse = reuse
        self._janitor: DatabaseJanitor | None = None
        self._schema = ""
        self._clock = ""

    def take(self) -> str:
        """The URL of a migrated database that is like the template."""
        if self._janitor is None:
            self._janitor = self._cloned()
            if self._reuse:
                with self._superuser() as conn:
                    self._clock = value(
                        conn, "select pg_get_functiondef('flashsale.clock()'::regprocedure)"
                    )
                    self._empty(conn)
                    self._schema = value(conn, SCHEMA)
        return self._server.url(self._janitor.dbname)

    def give_back(self) -> None:
        """Checks the promises, and empties the database or drops it.

        Errors: AssertionError with the rows of flashsale.violation; psycopg.Error if the test has
        left the database so that it can't be read.
        """
        __tracebackhide__ = True  # pytest shows the message, and none of this code
        broken: list[Any] = []
        try:
            with self._superuser() as conn:
                broken = violations(conn)
                if not broken and self._reuse:
                    self._empty(conn)
                    if value(conn, SCHEMA) == self._schema:
                        return
        except psycopg.Error:
            if not broken:
                self.drop()
                raise
        self.drop()
        if broken:
            found = "\n".join(f"  {row}" for row in broken)
            raise AssertionError(f"this test left flashsale.violation with rows in it:\n{found}")

    def drop(self) -> None:
        if self._janitor is not None:
            self._janitor.drop()
            self._janitor = None

    def _cloned(self) -> DatabaseJanitor:
        """A database made from the template, which belongs to the owner of flashsale."""
        admin = conninfo_to_dict(self._server.url("postgres", "postgres"))
        janitor = DatabaseJanitor(
            user="postgres",
            password=str(admin["password"]),
            host=str(admin["host"]),
            port=self._server.port,
            dbname=f"t{uuid.uuid4().hex[:12]}",
            template_dbname=self._template,
        )
        janitor.init()
        with connect(self._server.url("postgres", "postgres")) as conn:
            conn.execute(
                sql.SQL("alter database {} owner to flashsale").format(
                    sql.Identifier(janitor.dbname)
                )
            )
        return janitor

    def _superuser(self) -> Connection:
        assert self._janitor is not None, "no database was taken"
        return connect(self._server.url(self._janitor.dbname, "postgres"))

    def _empty(self, conn: Connection) -> None:
        conn.execute(EMPTY)
        conn.execute(self._clock.encode())


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
concat, because with || one null would make the whole line null and hide the rest of it."""

EMPTY = """
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
  insert into flashsale_data.feed default values; -- the one row that migrate makes
  insert into flashsale_data.retention (kind, days)
  select k.kind, k.days from flashsale.kinds_kept() k; -- as migrate does
end
$$
"""
"""Ends all other sessions, then empties the tables and queues, and starts the sequences anew.
Truncating a small table takes longer than deleting its rows: it makes a new file."""
