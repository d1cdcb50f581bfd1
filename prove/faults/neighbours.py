"""A whole sale beside everything that other people do on the same server at the same time.

- A change-data-capture tool publishes all tables and reads their changes.
- An analyst has a view, a table, a default, a function and grants on what is ours, and runs a
  report with one snapshot for minutes; meanwhile somebody migrates with --force.
- Somebody is idle in a transaction in another database.
- Two workers and pg_cron's loop sweep at the same time.

All this must not delay anything. What does delay the filling of holes, because any transaction with
an id may be one that has taken a ticket, is shown with its name: an open transaction that has
written something, in whatever database, and a forgotten prepared one.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psycopg

from flashsale.testing.calls import Connection, call, connect, one, rows, value
from prove.customers.client import UNREPEATED, Gateway
from prove.customers.http_sale import HttpSale, Size
from prove.faults.trial import SEED, evidence, server_errors, verdict
from prove.judge.aftermath import sell_out
from prove.report import Row
from prove.stage.cluster import admin
from prove.stage.fleet import THIS, Fleet, MigrateFailed

SERVER = {"wal_level": "logical", "max_prepared_transactions": "5"}
LOAD = Size(customers=100_000, per_second=60, ordinary_stock=400)
WORKERS = ("worker one", "worker two")
REPORT_SECONDS, FULL_REPORT_SECONDS = 12.0, 120.0
BLOCKED_SECONDS, FULL_BLOCKED_SECONDS = 5.0, 60.0
NEIGHBOURS = ("publication", "report", "idle transaction", "second worker", "pg_cron", "analyst")
BLOCKERS = {"other": "an open transaction in another database", "forgotten": "a prepared one"}
BLOCKER_VIEW = "flashsale.filling_blocker"

ANALYST = """
create role analyst;
create schema bi;
create table bi.kept (
  id integer, seen flashsale.order_row, at timestamptz default flashsale.clock());
create view bi.sales as select item_id, status, count(*) from flashsale.order_status group by 1, 2;
create function bi.sold(flashsale.order_row) returns boolean language sql
  as 'select $1.status = ''paid''';
insert into bi.kept (id, seen.order_id, seen.status) values (1, 42, 'paid');
grant usage on schema flashsale to analyst;
grant select on flashsale.item_status to analyst;
grant execute on function flashsale.issued_tickets(integer) to analyst;
"""
STILL_THERE = {
    "a column of ours in a table, and its data": "select (seen).order_id = 42 from bi.kept",
    "a view on ours": "select count(*) > 0 from bi.sales",
    "a function on a type of ours": "select bi.sold(seen) from bi.kept",
    "a default of ours": "insert into bi.kept (id) values (2) returning at is not null",
    "a grant on a view": "select has_table_privilege('analyst', 'flashsale.item_status', 'select')",
    "a grant on a function": "select has_function_privilege("
    "'analyst', 'flashsale.issued_tickets(integer)', 'execute')",
}


def proof(full: bool) -> list[Row]:
    """One sale: first with those that must not be felt, then with those that stop the filling."""
    with Fleet(server=SERVER) as fleet:
        fleet.migrate()
        fleet.add_provider()
        for worker in WORKERS:
            fleet.add_worker(worker)
        fleet.add_replica("one")
        fleet.wait_until_it_works(30)
        sale = HttpSale(Gateway(fleet.urls), fleet.provider_url, LOAD, SEED)
        loop, reader = CronLoop(fleet.database_url()), ChangeReader(fleet)
        with admin(fleet.postgres) as conn:
            conn.execute(ANALYST)
            conn.execute("create database other")
        with loop, reader, _idle_elsewhere(fleet):
            problems, unseen = asyncio.run(_sell(fleet, sale, full))
        run = evidence(fleet, sale)
        for worker in WORKERS:
            fleet.remove(worker)
        with admin(fleet.postgres) as conn:
            problems += [f"gone after migrate --force: {it}" for it in missing_things(conn)]
            conn.execute("select flashsale.open_item(item_id) from flashsale.item_status")
            problems += sell_out(conn)
    problems += fleet.ended + server_errors(sale, but=UNREPEATED) + loop.problems + reader.problems
    note = f"{loop.sweeps} sweeps by pg_cron's loop, {reader.changes:,} changes read"
    name = "a publication, a report, an idle session, three sweepers, an analyst"
    return [
        verdict(name, run, problems, len(NEIGHBOURS), note=note),
        Row(
            "an open and a forgotten transaction stop the filling of holes",
            len(BLOCKERS),
            violations=unseen,
            note=f"shown by {BLOCKER_VIEW}; the holes were sold after them",
        ),
    ]


async def _sell(fleet: Fleet, sale: HttpSale, full: bool) -> tuple[list[str], list[str]]:
    """The problems of the sale, and the blockers that nothing showed."""
    problems: list[str] = []
    await sale.open()
    load = asyncio.create_task(sale.run())
    await asyncio.sleep(1)
    with _report(fleet):
        seconds = FULL_REPORT_SECONDS if full else REPORT_SECONDS
        await asyncio.sleep(seconds / 2)
        try:
            await asyncio.to_thread(fleet.migrate, THIS, "--force")
        except MigrateFailed as error:
            problems.append(str(error))
        await asyncio.sleep(seconds / 2)
    began = time.time()
    with _blockers(fleet):
        await asyncio.sleep(FULL_BLOCKED_SECONDS if full else BLOCKED_SECONDS)
        with admin(fleet.postgres) as conn:
            unseen = _unseen(conn)
    fleet.outages.append((began, time.time()))
    await asyncio.sleep(2)
    sale.let_nobody_in()
    await load
    try:
        await sale.finish(fleet.unfinished)
    except TimeoutError as error:
        problems.append(str(error))
    return problems, unseen


@contextmanager
def _idle_elsewhere(fleet: Fleet) -> Iterator[None]:
    """Somebody who has begun a transaction in another database, has read, and has gone home."""
    with connect(fleet.postgres.url("other", "postgres"), autocommit=False) as conn:
        conn.execute("select count(*) from pg_class")
        yield
        conn.rollback()


@contextmanager
def _report(fleet: Fleet) -> Iterator[None]:
    with admin(fleet.postgres) as conn:
        conn.execute("begin isolation level repeatable read")
        conn.execute("select count(*) from pg_class")
        yield
        conn.execute("rollback")


@contextmanager
def _blockers(fleet: Fleet) -> Iterator[None]:
    """An open transaction in another database that wrote something, and a prepared one in ours."""
    with ExitStack() as stack:
        elsewhere = stack.enter_context(connect(fleet.postgres.url("other", "postgres")))
        elsewhere.execute("set application_name = 'other'")
        elsewhere.execute("begin")
        elsewhere.execute("create table written ()")
        ours = stack.enter_context(admin(fleet.postgres))
        ours.execute("begin")
        call(ours, "reserve", 1, "forgetful")
        ours.execute("prepare transaction 'forgotten'")
        yield
        ours.execute("rollback prepared 'forgotten'")
        elsewhere.execute("rollback")


def _unseen(conn: Connection) -> list[str]:
    """The blockers that are not shown to operators."""
    if value(conn, "select to_regclass(%s)", BLOCKER_VIEW) is None:
        return [f"there is no view {BLOCKER_VIEW}"]
    shown = rows(conn, f"select coalesce(gid, application_name) as name from {BLOCKER_VIEW}")
    names = {row.name for row in shown}
    return [f"not shown: {what}" for name, what in BLOCKERS.items() if name not in names]


def missing_things(conn: Connection) -> list[str]:
    """What of the analyst's is not as it was made."""
    missing = []
    for what, question in STILL_THERE.items():
        try:
            if value(conn, question) is not True:
                missing.append(what)
        except psycopg.Error as error:
            missing.append(f"{what} ({error.diag.message_primary})")
    return missing


class CronLoop(threading.Thread):
    """What pg_cron runs, for servers without it: its procedure, again and again."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.sweeps = 0
        self.problems: list[str] = []
        self._url = url
        self._over = threading.Event()
        self._pid = 0

    def __enter__(self) -> CronLoop:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        with connect(self._url) as conn:
            self._over.set()
            conn.execute("select pg_cancel_backend(%s)", [self._pid])
            self.join()
            self.sweeps = one(
                conn,
                "select coalesce(sum(sweeps), 0)::integer as n from flashsale_data.sweepers "
                "where runner = 'pg_cron'",
            ).n
        if not self.sweeps:
            self.problems.append("pg_cron's loop did not sweep")

    def run(self) -> None:
        with connect(self._url) as conn:
            self._pid = conn.info.backend_pid
            while not self._over.is_set():
                try:
                    conn.execute("call flashsale.sweep_for_a_minute()")
                except psycopg.Error as error:
                    if not self._over.is_set():
                        self.problems.append(f"pg_cron's loop: {error}")
                        self._over.wait(1)


class ChangeReader(threading.Thread):
    """A change-data-capture tool: a publication for all tables, a slot, and who reads it."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(daemon=True)
        self.changes = 0
        self.problems: list[str] = []
        self._fleet = fleet
        self._over = threading.Event()

    def __enter__(self) -> ChangeReader:
        with admin(self._fleet.postgres) as conn:
            conn.execute("create publication everything for all tables")
            conn.execute("select pg_create_logical_replication_slot('reader', 'pgoutput')")
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()
        if not self.changes:
            self.problems.append("no changes were read from the publication")

    def run(self) -> None:
        with contextlib.closing(admin(self._fleet.postgres)) as conn:
            while not self._over.wait(0.5):
                self.changes += value(
                    conn,
                    "select count(*) from pg_logical_slot_get_binary_changes('reader', null, null, "
                    "'proto_version', '1', 'publication_names', 'everything')",
                )
