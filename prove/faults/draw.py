"""A draw during which Postgres is killed, beside a sale that must not notice.

Customers enter on 50 connections. When the item opens, a runner sweeps as the worker does, one item
per transaction, and Postgres is killed twice while the places are given out. In the end everybody
has exactly the place that the published secret gives them, by the same rules as check-draw's.

Meanwhile another item is sold: each unit that a customer gives back has to be offered to the next
one in time, and no call may take long. (While Postgres is down nothing is measured.)
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from flashsale.check_draw import Entry, faults
from flashsale.database.migrate import migrate
from flashsale.dev.postgres import EmbeddedPostgres
from flashsale.testing.calls import Connection, call, connect, item, one, rows, value
from flashsale.testing.servers import cluster_folder
from prove.report import Row
from prove.stage.cluster import kill

CONNECTIONS = 50
ENTRIES, FULL_ENTRIES = 100_000, 1_000_000
BATCH = 200
KILLS = 2
OFFERED_SECONDS = 5.0
"""How long a unit of the other item may be idle: a sweep per second, on a machine that is busy."""
CALL_SECONDS = 3.0
PATIENCE_SECONDS = 1800.0


class DrawUnderWay:
    """An item with a draw, another item, and the threads that are at work on them."""

    def __init__(self, postgres: EmbeddedPostgres) -> None:
        self.postgres = postgres
        with connect(postgres.url()) as conn:
            opens_at = datetime.now(UTC) + timedelta(hours=1)
            terms: dict[str, Any] = {"stock": 1000, "hold_seconds": 600}
            self.item_id = item(conn, "drawn", draw=True, opens_at=opens_at, **terms)
            self.other_id = item(conn, "beside", hold_seconds=600, stock=1)
            self.commitment = call(conn, "draw_status", self.item_id).commitment
        self.entered: dict[str, int] = {}
        self.stop = threading.Event()
        self.problems: list[str] = []
        self.offers: list[float] = []
        self.calls: list[float] = []

    def enter(self, first: int, count: int) -> None:
        """Customers enter on a connection of their own."""
        with connect(self.postgres.url()) as conn:
            for start in range(first, first + count, BATCH):
                names = [f"c{n}" for n in range(start, min(start + BATCH, first + count))]
                answers = rows(
                    conn,
                    "select order_id, outcome, customer_id from flashsale.reserve_many("
                    "array_fill(%s::int, array[%s::int]), %s)",
                    self.item_id,
                    len(names),
                    names,
                )
                for answer in answers:
                    if answer.outcome != "entered":
                        self.problems.append(f"{answer.customer_id} got {answer.outcome}")
                    self.entered[answer.customer_id] = answer.order_id

    def sweep(self) -> None:
        """Sweeps as a runner does, until told to stop."""
        while not self.stop.is_set():
            with suppress(psycopg.OperationalError), connect(self.postgres.url()) as conn:
                while not self.stop.is_set():
                    self._sweep_once(conn)
            time.sleep(0.1)

    def _sweep_once(self, conn: Connection) -> None:
        more = False
        for due in rows(conn, "select * from flashsale.begin_sweep('prove')"):
            visit = one(
                conn,
                "select * from flashsale.sweep_item('prove', %s, %s, 1000)",
                due.item_id,
                due.overdue_ids,
            )
            more = more or visit.more
            if visit.error is not None:
                self.problems.append(visit.error)
        if not more:
            time.sleep(0.1)

    def sell(self) -> None:
        """The other sale: the one unit goes from customer to customer, until told to stop."""
        turn = 0
        while not self.stop.is_set():
            with suppress(psycopg.OperationalError), connect(self.postgres.url()) as conn:
                holder = None
                while not self.stop.is_set():
                    turn += 1
                    waiting = self._timed(conn, "reserve", self.other_id, f"o{turn}")
                    if waiting.status == "waiting":
                        if holder is not None:
                            self._timed(conn, "cancel", holder)
                        self._wait_for_offer(conn, waiting.order_id, measured=holder is not None)
                    holder = waiting.order_id
            with suppress(psycopg.OperationalError), connect(self.postgres.url()) as conn:
                for order in rows(  # of before the kill
                    conn,
                    "select order_id from flashsale.order_status where item_id = %s "
                    "and ended_at is null",
                    self.other_id,
                ):
                    call(conn, "cancel", order.order_id)
            time.sleep(0.1)

    def _timed(self, conn: Connection, verb: str, *arguments: object) -> Any:
        began = time.monotonic()
        row = call(conn, verb, *arguments)
        self.calls.append(time.monotonic() - began)
        return row

    def _wait_for_offer(self, conn: Connection, order_id: int, *, measured: bool) -> None:
        began = time.monotonic()
        while not self.stop.is_set():
            if self._timed(conn, "order_status", order_id).status == "reserved":
                if measured:
                    self.offers.append(time.monotonic() - began)
                return
            time.sleep(0.005)

    def kill_while_drawing(self, entries: int) -> int:
        """Kills Postgres each time so many places more are given out. Returns how often."""
        killed = 0
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            with suppress(psycopg.OperationalError), connect(self.postgres.url()) as conn:
                while time.monotonic() < end:
                    state = call(conn, "draw_status", self.item_id).state
                    placed = value(conn, "select sum(placed_units) from flashsale_data.draws")
                    if state == "drawn":
                        return killed
                    if killed < KILLS and placed > entries * killed // (KILLS + 1):
                        killed += 1
                        kill(self.postgres)
                        self.postgres.start()
                        break
                    time.sleep(0.01)
        self.problems.append(f"it was not drawn within {PATIENCE_SECONDS} s")
        return killed

    def judge(self, entries: int) -> list[str]:
        """What is wrong with the draw, now that it is done."""
        with connect(self.postgres.url()) as conn:
            public = call(conn, "draw_status", self.item_id)
            listed: list[Entry] = []
            while page := rows(
                conn,
                "select * from flashsale.draw_entries(%s, %s, 10000)",
                self.item_id,
                int(listed[-1].entry_id) if listed else 0,
            ):
                listed += [Entry(str(e.entry_id), e.quantity, e.ticket) for e in page]
            problems = list(faults(public._asdict(), listed))
            if public.commitment != self.commitment:
                problems.append("the commitment has changed")
            if {e.entry_id for e in listed} != {str(e) for e in self.entered.values()}:
                problems.append("those who were told that they have entered are not the list")
            places = {int(e.entry_id): e.ticket for e in listed}
            found = rows(
                conn,
                "select o.customer_id, o.ticket from flashsale.order_status o "
                "where o.item_id = %s and o.ticket <= %s",
                self.item_id,
                entries,
            )
            problems += [
                f"{o.customer_id} has ticket {o.ticket}"
                for o in found
                if places[self.entered[o.customer_id]] != o.ticket
            ]
            if len(found) != entries:
                problems.append(f"{len(found)} orders have the tickets 1 to {entries}")
            late = call(conn, "reserve", self.item_id, "late")
            if late.ticket != entries + 1:
                problems.append(f"a late customer has ticket {late.ticket}")
            problems += [str(v) for v in rows(conn, "select * from flashsale.violation limit 20")]
        return problems


def proof(full: bool) -> list[Row]:
    """Everybody has the place that the secret gives them; nobody else waits."""
    entries = FULL_ENTRIES if full else ENTRIES
    share = entries // CONNECTIONS
    with cluster_folder() as folder, EmbeddedPostgres(folder) as postgres:
        migrate(postgres.url())
        draw = DrawUnderWay(postgres)
        with ThreadPoolExecutor(CONNECTIONS) as customers:
            list(customers.map(lambda n: draw.enter(n * share, share), range(CONNECTIONS)))
        with ThreadPoolExecutor(2) as others:
            at_work = [others.submit(draw.sweep), others.submit(draw.sell)]
            try:
                with connect(postgres.url()) as conn:
                    call(conn, "open_item", draw.item_id)
                began = time.monotonic()
                killed = draw.kill_while_drawing(entries)
                seconds = time.monotonic() - began
            finally:
                draw.stop.set()
            for task in at_work:
                task.result()
        problems = [*draw.problems, *draw.judge(entries)]
    if killed != KILLS:
        problems.append(f"Postgres was killed {killed} times")
    late = [f"a unit was idle for {s:.1f} s" for s in draw.offers if s > OFFERED_SECONDS]
    slow = [f"a call took {s:.1f} s" for s in draw.calls if s > CALL_SECONDS]
    return [
        Row(
            "a draw during which Postgres is killed",
            killed,
            acknowledged=len(draw.entered),
            violations=problems,
            note=f"drawn in {seconds:.0f} s by one runner",
        ),
        Row(
            "another sale beside the draw",
            acknowledged=len(draw.calls),
            violations=[*late, *slow],
            note=f"{len(draw.offers):,} units were offered again after at most "
            f"{max(draw.offers, default=0):.2f} s; the longest call: "
            f"{1000 * max(draw.calls, default=0):.0f} ms",
        ),
    ]
