"""A synchronous standby takes over: nothing that was acknowledged is lost, and the sale goes on.

Clients reserve, pay and cancel, and repeat a request with the same key until they have an answer.
All processes of the primary are killed, the standby is promoted, and the same clients go on there.
After each failover comes the next one, to a new standby of the new primary.

The other half of this proof is about something that synchronous replication does not promise:
Postgres reports a commit whose wait for the standby was cancelled as a success, with a warning.
Such an order may be lost in a failover. The service does not acknowledge it, and a retry with the
same key is safe.
"""

from __future__ import annotations

import os
import random
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

from flashsale.database.migrate import migrate
from flashsale.dev.postgres import EmbeddedPostgres
from flashsale.testing.calls import (
    Connection,
    call,
    call_all,
    connect,
    eventually,
    item,
    rows,
    value,
)
from flashsale.testing.servers import server_folder
from prove.judge.aftermath import honours, sell_out
from prove.report import Row
from prove.stage.cluster import admin, kill, standby

CLIENTS = 6
STOCK = 200
ANSWERS = 400  # before a failover, and as many after it
CANCELLED = 5  # waits for the standby
SELLING_AGAIN_SECONDS = 30.0
PATIENCE_SECONDS = 60.0
WAIT_FOR_STANDBY = "SyncRepWaitForLSN"
"""The function in Postgres that warns of a cancelled wait; the message itself is translated."""
IN_SYNC = "select 1 as yes from pg_stat_replication where sync_state = 'sync'"
WAITING = "select pid from pg_stat_activity where wait_event = 'SyncRep'"


class Acknowledged(NamedTuple):
    """An answer to a customer. asked, answered: the number of failovers by that time."""

    asked: int
    answered: int
    key: str
    outcome: str
    item_id: int
    order_id: int
    customer_id: str
    ticket: int
    status: str
    expires_at: datetime | None


def _acknowledged(asked: int, answered: int, key: str, row: Any) -> Acknowledged:
    return Acknowledged(
        asked, answered, key, *(getattr(row, name) for name in Acknowledged._fields[3:])
    )


class FailoverSale:
    """The current primary, the answers to its customers, and the count of unknown results."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.failovers = 0
        self.item_id = 0
        self.answers: list[Acknowledged] = []
        self.refused = 0
        self.unknown = 0
        self.stopping = False


class Shopper(threading.Thread):
    """Plays customers, one after the other, on the server that is the primary at the time."""

    def __init__(self, sale: FailoverSale, name: str) -> None:
        super().__init__(daemon=True)
        self._sale = sale
        self._label = name
        self._dice = random.Random(name)
        self._conn: Connection | None = None
        self._warned = False
        self.start()

    def run(self) -> None:
        mine: list[Any] = []
        for n in range(10**9):
            if self._sale.stopping:
                return
            luck = self._dice.random()
            order = self._dice.choice(mine[-10:]) if mine else None
            if luck < 0.1:
                self._burn(f"gone {self._label} {n}")
            elif luck < 0.15:
                self._ask("", "sweep", f"sweeper {self._label[-1]}")
            elif luck < 0.35 and order:
                self._ask("", "pay_offline", order.order_id, f"till-{order.order_id}")
            elif luck < 0.45 and order:
                self._ask("", "cancel", order.order_id)
            else:
                key = f"key {n}"
                mine += self._ask(
                    key, "reserve", self._sale.item_id, f"customer {self._label} {n}", key
                )

    def _ask(self, key: str, function: str, *args: Any) -> list[Any]:
        """Repeats a call until there is a certain answer."""
        asked = self._sale.failovers
        while True:
            failovers = self._sale.failovers
            try:
                found = call_all(self._session(), function, *args)
            except psycopg.OperationalError:
                self._lost()
                if self._sale.stopping:
                    return []
                continue
            except psycopg.Error as error:
                if not (error.sqlstate or "").startswith("RV"):
                    raise
                self._sale.refused += 1
                return []
            if self._warned:
                self._warned = False
                self._sale.unknown += 1
                continue
            if function != "sweep":
                self._sale.answers += [_acknowledged(asked, failovers, key, row) for row in found]
            return found

    def _burn(self, customer: str) -> None:
        """A request that rolls back after it has taken a ticket."""
        try:
            conn = self._session()
            conn.execute("begin")
            call(conn, "reserve", self._sale.item_id, customer, None)
            conn.execute("rollback")
        except psycopg.OperationalError:
            self._lost()

    def _session(self) -> Connection:
        if self._conn is None:
            self._conn = connect(self._sale.url)
            self._conn.add_notice_handler(self._notice)
        return self._conn

    def _notice(self, notice: psycopg.errors.Diagnostic) -> None:
        self._warned |= notice.source_function == WAIT_FOR_STANDBY

    def _lost(self) -> None:
        if self._conn is not None:  # else the request was never sent
            self._sale.unknown += 1
            self._conn.close()
            self._conn = None
        time.sleep(0.02)


def pair(primary: EmbeddedPostgres, home: Path) -> EmbeddedPostgres:
    """Starts a standby, for which the primary's commits wait from now on. Returns the standby."""
    second = standby(primary, home, "second").start()
    with admin(primary) as conn:
        conn.execute("alter system set synchronous_standby_names = 'second'")
        conn.execute("select pg_reload_conf()")
        eventually(lambda: rows(conn, IN_SYNC), PATIENCE_SECONDS)
    return second


def _wait_for_answers(sale: FailoverSale, count: int, clients: list[Shopper]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(sale.answers) < count:
        if time.monotonic() > deadline or not all(client.is_alive() for client in clients):
            raise TimeoutError(f"{len(sale.answers)} of {count} answers: clients died or starve")
        time.sleep(0.01)


class Round(NamedTuple):
    """One failover: how long no sale was possible, and the problems that were found."""

    away_seconds: float
    holes: int  # filled and sold
    violations: list[str]


def failover(
    sale: FailoverSale, primary: EmbeddedPostgres, second: EmbeddedPostgres, seed: str
) -> Round:
    """Kills the primary under load, goes on at the standby, and checks all the data there."""
    with admin(primary) as conn:
        sale.item_id = item(conn, f"shoe {sale.failovers}", stock=STOCK, hold_seconds=2)
    sale.stopping = False
    clients = [Shopper(sale, f"{seed} {sale.failovers} {n}") for n in range(CLIENTS)]
    try:
        _wait_for_answers(sale, len(sale.answers) + ANSWERS, clients)
        time.sleep(random.Random(f"{seed} {sale.failovers}").random())
        kill(primary)
        killed = time.monotonic()
        with admin(second) as conn:
            conn.execute("select pg_promote()")
        sale.url = second.url()
        sale.failovers += 1
        known = len(sale.answers)
        _wait_for_answers(sale, known + 1, clients)
        away = time.monotonic() - killed
        _wait_for_answers(sale, known + ANSWERS, clients)
    finally:
        sale.stopping = True
        for client in clients:
            client.join(PATIENCE_SECONDS)
    with admin(second) as conn:
        broken = _broken(conn, sale)
        if away > SELLING_AGAIN_SECONDS:
            broken.append(f"not selling for {away:.1f} s")
        broken += sell_out(conn)
        holes = value(
            conn,
            "select count(*) from flashsale_data.orders where item_id = %s and status = 'void'",
            sale.item_id,
        )
    return Round(away, holes, [f"failover {sale.failovers}: {what}" for what in broken])


def _broken(conn: Connection, sale: FailoverSale) -> list[str]:
    """Acknowledged answers that don't hold on this server."""
    orders = {
        order.order_id: order
        for order in conn.execute(
            "select order_id, customer_id, ticket, status::text, expires_at "
            "from flashsale_data.orders"
        )
    }
    broken = [
        f"acknowledged, and lost: {answer}"
        for answer in sale.answers
        if not honours(orders.get(answer.order_id), answer)
        or orders[answer.order_id].customer_id != answer.customer_id
    ]
    here = [answer for answer in sale.answers if answer.item_id == sale.item_id and answer.key]
    for first in range(0, len(here), 1000):
        asked = here[first : first + 1000]
        items, customers, keys = zip(
            *((a.item_id, a.customer_id, a.key) for a in asked), strict=True
        )
        again = call_all(conn, "reserve_many", list(items), list(customers), list(keys))
        broken += [
            f"the same key, another order: {answer} {row}"
            for answer, row in zip(asked, again, strict=True)
            if answer.order_id != row.order_id
        ]
    before = max(answer.ticket for answer in here if answer.answered < sale.failovers)
    broken += [
        f"ticket {before} was given out before the failover, after it: {answer}"
        for answer in here
        if answer.asked == sale.failovers and answer.ticket <= before
    ]
    return broken


def cancelled_waits(primary: EmbeddedPostgres, second: EmbeddedPostgres) -> Row:
    """Customers whose wait for the standby is cancelled, and a failover before it has caught up."""
    told: dict[str, Any] = {}
    warned: set[str] = set()

    def customer(name: str) -> None:
        with connect(primary.url()) as conn:
            conn.add_notice_handler(
                lambda n: warned.add(name) if n.source_function == WAIT_FOR_STANDBY else None
            )
            told[name] = call(conn, "reserve", item_id, name, "key")

    with admin(primary) as conn:
        item_id = item(conn, "cancelled", stock=CANCELLED, hold_seconds=60)
        second.stop()
        for n in range(CANCELLED):
            thread = threading.Thread(target=customer, args=(f"customer {n}",))
            thread.start()
            (waiting,) = eventually(lambda: rows(conn, WAITING), PATIENCE_SECONDS)
            conn.execute("select pg_cancel_backend(%s)", [waiting.pid])
            thread.join(PATIENCE_SECONDS)
    kill(primary)
    second.start()
    with admin(second) as conn:
        conn.execute("select pg_promote()")
        there = {
            row.order_id for row in conn.execute("select order_id from flashsale.order_status")
        }
        gone = sum(order.order_id not in there for order in told.values())
        broken = [
            f"reported as a success, without a warning: {told[n]}" for n in told.keys() - warned
        ]
        for name in told:
            order = call(conn, "reserve", item_id, name, "key")
            if order.status != "reserved":
                broken.append(f"asked again, {name} got {order}")
        broken += sell_out(conn)
    return Row(
        "cancelled wait for the standby",
        CANCELLED,
        acknowledged=len(told.keys() - warned),
        unknown=len(warned),
        violations=broken,
        note=f"all {len(told)} reported as a success with a warning; {gone} gone after a failover",
    )


def proof(full: bool) -> list[Row]:
    seed = os.environ.get("PROVE_SEED", str(int(time.time())))
    print(f"   failover: seed {seed}", flush=True)
    rounds = []
    with server_folder() as room:
        primary = EmbeddedPostgres(room / "0").start()
        second: EmbeddedPostgres | None = None
        try:
            migrate(primary.url())
            sale = FailoverSale(primary.url())
            for n in range(10 if full else 2):
                second = pair(primary, room / f"{n + 1}")
                rounds.append(failover(sale, primary, second, seed))
                primary = second
            second = pair(primary, room / "last")
            cancelled = cancelled_waits(primary, second)
        finally:
            primary.stop()
            if second:
                second.stop()
    slowest = max(r.away_seconds for r in rounds)
    holes = sum(r.holes for r in rounds)
    row = Row(
        "failover to the standby",
        len(rounds),
        len(sale.answers),
        sale.refused,
        sale.unknown,
        violations=[what for r in rounds for what in r.violations],
        note=f"selling again within {slowest:.1f} s; {holes} holes sold; seed {seed}",
    )
    return [row, cancelled]
