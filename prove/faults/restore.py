"""A backup is taken in the middle of a sale, the server dies later, and the backup is restored.

What is restored has holds, customers who wait, payments under way, jobs in the queues, and tickets
that are being settled by the transaction ids of another cluster. The service starts with that, and
the provider sends again what it has reported since the backup. Then every unit has to be sold.

What a restore to an earlier moment can't keep are the orders of the time after the backup: their
customers were told of them, and they are gone. Their money is not lost: it goes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flashsale.dev.postgres import EmbeddedPostgres
from flashsale.testing.calls import Connection, call, connect, rows
from flashsale.testing.servers import put_cluster, server_folder
from prove.customers.client import Gateway
from prove.customers.http_sale import HttpSale, Size
from prove.faults.trial import BOUND_SECONDS, SEED
from prove.judge.aftermath import sell_out
from prove.judge.checker import judge
from prove.judge.end import nothing_is_left_over, the_database_agrees
from prove.judge.history import History
from prove.judge.line import one_live_order_a_customer
from prove.judge.money import every_capture_is_settled_once
from prove.judge.orders import times_make_sense
from prove.judge.records import FinalTables, Run, read_ledger
from prove.report import Row
from prove.stage.cluster import admin, base_backup, dump, kill, restore_dump
from prove.stage.fleet import Fleet, MigrateFailed

LOAD = Size(customers=100_000, per_second=60, ordinary_stock=60)
SECONDS, FULL_SECONDS = 6.0, 60.0
"""Of the sale before the backup, and half as long after it."""
WITHOUT_WORKER_SECONDS = 0.5
OVERLAP_SECONDS = 5.0
"""So much earlier than the backup are the events that the provider sends again."""
DRAIN_SECONDS = 60.0
SKIPPED = 1000
"""Tickets, and numbers of payments, that may have been given out after the backup."""
SKIP = f"""
select setval(i.line, coalesce(pg_sequence_last_value(i.line), 0) + {SKIPPED})
from flashsale_data.items i
union all
select setval(
  pg_get_serial_sequence('flashsale_data.payments', 'payment_id'),
  nextval(pg_get_serial_sequence('flashsale_data.payments', 'payment_id')) + {SKIPPED})
"""
"""What was given out after the backup is not given out again. Otherwise a new order could have the
name of one that is gone, and get its money."""
PAID_BACK = """
select p.order_id, p.session_id, p.amount, p.currency
from flashsale_data.payments p
join flashsale_data.payment_events e on e.session_id = p.session_id
where p.status = 'succeeded' and e.type = 'payment.refunded'
"""
"""Orders that the events of the lost time have paid, though their money had been refunded then."""
MIDDLE = """
select 'holds' as what, count(*) as n from flashsale.open_reservation
union all select 'waiting orders', count(*) from flashsale.waiting_line
union all select 'open payments', count(*) from flashsale_data.payments where status = 'open'
union all select 'payment jobs', count(*) from pgmq.q_payments
union all select 'noted transaction ids', count(*) from flashsale_data.items
  where noted_xid is not null
"""
HOLDS_AFTER = (
    times_make_sense,
    one_live_order_a_customer,
    every_capture_is_settled_once,
    nothing_is_left_over,
    the_database_agrees,
)
"""The others compare with answers and times from before the restore."""


@dataclass
class Lost:
    """What is known of a sale whose server died. Times in Unix seconds."""

    history: History
    ledger: list[dict[str, Any]] = field(default_factory=list)
    backup_began: float = 0.0
    problems: list[str] = field(default_factory=list)


def proof(full: bool) -> list[Row]:
    """One sale, and both kinds of backup of it."""
    with server_folder() as room:
        lost = _half_a_sale(room, FULL_SECONDS if full else SECONDS)
        fresh = room / "fresh"
        put_cluster(fresh)
        with EmbeddedPostgres(fresh) as server:
            restore_dump(server, room / "dump")
        return [
            _restored("pg_dump restored into a new cluster without roles", fresh, lost),
            _restored("base backup of a running sale restored", room / "base", lost),
        ]


def _half_a_sale(room: Path, seconds: float) -> Lost:
    with Fleet() as fleet:
        fleet.migrate()
        fleet.add_provider()
        fleet.add_worker("worker")
        fleet.add_replica("one")
        fleet.wait_until_it_works(30)
        sale = HttpSale(Gateway(fleet.urls), fleet.provider_url, LOAD, SEED)
        lost = Lost(sale.history)
        asyncio.run(_until_it_dies(fleet, sale, lost, room, seconds))
        for part in ("worker", "one", "provider"):
            fleet.remove(part)
        lost.ledger = read_ledger(fleet.ledger)
    return lost


async def _until_it_dies(
    fleet: Fleet, sale: HttpSale, lost: Lost, room: Path, seconds: float
) -> None:
    await sale.open()
    load = asyncio.create_task(sale.run())
    await asyncio.sleep(seconds / 2)
    with contextlib.closing(
        connect(fleet.database_url())
    ) as forgetful:  # so that a hole can't be filled meanwhile
        forgetful.execute("begin")
        call(forgetful, "reserve", min(sale.stock), "forgetful")
        await asyncio.sleep(seconds / 2)
        fleet.crash("worker")  # so that jobs are leased, and others wait
        await asyncio.sleep(WITHOUT_WORKER_SECONDS)
        lost.backup_began = time.time()
        with admin(fleet.postgres) as conn:
            lacking = [row.what for row in rows(conn, MIDDLE) if not row.n]
        lost.problems += [f"too little exercise: no {what} at the backup" for what in lacking]
        await asyncio.to_thread(dump, fleet.postgres, room / "dump")
        await asyncio.to_thread(base_backup, fleet.postgres, room / "base")
        fleet.add_worker("worker")
        await asyncio.sleep(seconds / 2)
        sale.let_nobody_in()
        await load
        await asyncio.to_thread(kill, fleet.postgres)


def _restored(name: str, home: Path, lost: Lost) -> Row:
    """Starts the service with a restored cluster, and sells all that is left."""
    outcomes = lost.history.outcomes()
    row = Row(name, 1, outcomes["ok"], outcomes["refused"], outcomes["unknown"])
    with Fleet(EmbeddedPostgres(home)) as fleet:
        began = time.monotonic()
        try:
            _start(fleet, lost)
        except (MigrateFailed, TimeoutError) as error:
            return replace(row, violations=[*lost.problems, f"it does not start: {error}"])
        away = time.monotonic() - began
        problems = [*lost.problems, *_sell_what_is_left(fleet, lost)]
        database, ledger = FinalTables.read(fleet.database_url()), read_ledger(fleet.ledger)
        with admin(fleet.postgres) as conn:
            shown = {("refunded", row.session_id) for row in rows(conn, PAID_BACK)}
    problems += fleet.ended
    judged = [  # what operators are shown, they settle by hand
        line for line in ledger if (line.get("to"), line.get("session_id")) not in shown
    ]
    problems += judge(Run(History(), database, judged, {}, BOUND_SECONDS), only=HOLDS_AFTER)
    gone, early = orders_gone(lost, database)
    problems += [f"acknowledged before the backup, and gone: {place}" for place in early]
    problems += money_of_others(lost, database)
    captured = _moves(lost.ledger, "captured")
    late = {session for session, at in captured.items() if at >= lost.backup_began}
    back = late & set(_moves(ledger, "refunded"))
    sold = sum(order.status == "paid" for order in database.orders)
    note = f"selling after {away:.1f} s; {sold} units sold; can't be kept: {gone} orders that were "
    note += f"acknowledged after the backup; of {len(late)} payments after it {len(back)} went back"
    note += f"; {len(shown)} paid orders to settle by hand"
    return replace(row, violations=problems, note=note)


def _start(fleet: Fleet, lost: Lost) -> None:
    """What the how-to says, in its order. Errors: MigrateFailed, TimeoutError."""
    fleet.migrate()
    with admin(fleet.postgres) as conn:
        conn.execute(SKIP)
    fleet.ledger.write_text(events_to_send_again(lost))
    fleet.add_provider()
    fleet.add_replica("one")
    fleet.add_worker("worker")
    fleet.wait_until_it_works(30)


def _sell_what_is_left(fleet: Fleet, lost: Lost) -> list[str]:
    checkout = Checkout(fleet.provider_url)
    for session_id in unknown_sessions(lost):
        checkout.complete(session_id)
    with admin(fleet.postgres) as conn:
        problems = sell_out(conn, checkout.pays, DRAIN_SECONDS)
        conn.execute("select flashsale.close_item(item_id) from flashsale.item_status")
    deadline = time.monotonic() + DRAIN_SECONDS
    while left := fleet.unfinished():
        if time.monotonic() > deadline:
            return [*problems, f"after {DRAIN_SECONDS:g} s still unfinished: {left}"]
        time.sleep(0.2)
    return problems


def _moves(ledger: list[dict[str, Any]], to: str) -> dict[str, float]:
    """When each session's money was captured, or refunded."""
    return {
        line["session_id"]: _unix(line["at"])
        for line in ledger
        if line["kind"] == "moved" and line["to"] == to
    }


def _unix(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def events_to_send_again(lost: Lost) -> str:
    """The provider's ledger, as if no event since the backup had been delivered."""
    since = lost.backup_began - OVERLAP_SECONDS
    kept = [
        line for line in lost.ledger if line["kind"] != "delivered" or _unix(line["at"]) < since
    ]
    return "".join(json.dumps(line) + "\n" for line in kept)


def unknown_sessions(lost: Lost) -> list[str]:
    """Sessions opened after the backup, which the restored database does not know, still open."""
    ended = {line["session_id"] for line in lost.ledger if line["kind"] == "moved"}
    return [
        line["session_id"]
        for line in lost.ledger
        if line["kind"] == "opened"
        and _unix(line["at"]) > lost.backup_began
        and line["session_id"] not in ended
    ]


def orders_gone(lost: Lost, database: FinalTables) -> tuple[int, list[tuple[int, int]]]:
    """How many orders are gone, and which of these were acknowledged before the backup began."""
    there = {order.place: order.customer for order in database.orders}
    gone: dict[tuple[int, int], float] = {}
    for op in lost.history.ops:
        if op.told and there.get(op.told) != op.customer and op.answered:
            first = op.answered + lost.history.epoch
            gone[op.told] = min(first, gone.get(op.told, first))
    return len(gone), [place for place, at in gone.items() if at < lost.backup_began]


def money_of_others(lost: Lost, database: FinalTables) -> list[str]:
    """Orders that were bought with the money of another customer, whose order is gone."""
    customers = {
        op.body["order_id"]: op.customer for op in lost.history.ops if op.told and op.customer
    }
    payers = {
        line["session_id"]: customers.get(line["order_id"])
        for line in lost.ledger
        if line["kind"] == "opened"
    }
    buyers = {order.place: order.customer for order in database.orders}
    return [
        f"the money of {payers[p.session_id]} bought {(p.item_id, p.ticket)} of somebody else"
        for p in database.payments
        if p.status == "succeeded"
        and p.session_id in payers
        and payers[p.session_id] not in (None, buyers.get((p.item_id or 0, p.ticket or 0)))
    ]


class Checkout:
    """Customers at the provider's checkout pages."""

    def __init__(self, provider_url: str) -> None:
        self._url = provider_url
        self._done: set[str] = set()

    def pays(self, conn: Connection, hold: Any) -> None:
        """The customer of a hold pays, or asks for another try if the last one has failed."""
        if hold.payment_status == "failed":
            call(conn, "request_payment", hold.order_id)
        elif hold.checkout_url:
            self.complete(urlsplit(hold.checkout_url).path.rsplit("/", 1)[1])

    def complete(self, session_id: str) -> None:
        """Pays, once. That the session has ended is no error."""
        if session_id in self._done:
            return
        self._done.add(session_id)
        request = urllib.request.Request(
            f"{self._url}/sessions/{session_id}/complete", b'{"outcome": "succeed"}', method="POST"
        )
        try:
            urllib.request.urlopen(request, timeout=10).close()
        except urllib.error.HTTPError as refused:
            refused.close()
