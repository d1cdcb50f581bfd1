"""Very much falls due at the same moment: many lines end, many holds of many items expire.

The real worker, with its default time-outs, has to make steady progress until all is done, and the
line of another item must not stand still meanwhile. The orders are made by reserve_many. Only the
moment at which they are due is set by hand, so that it is the same for all of them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import psycopg

from flashsale.testing.calls import Connection, call, call_all, connect, item, rows, value
from prove.report import Row
from prove.stage.cluster import admin
from prove.stage.fleet import Fleet

BATCH = 1000
PROGRESS_SECONDS = 10.0
"""As long as something is due, something happens within this; two worker's time-outs."""
LOOK_SECONDS = 0.3
MEANWHILE_SECONDS, MEANWHILE_SHARE = 5.0, 0.1
"""Within which a freed unit of another item goes to the next customer. On a slow machine: in less
than this share of the time that all of it takes."""
LEAST_HANDOVERS = 3
CALM_LINE = 5000
A_WEEK = 604_800


@dataclass(frozen=True)
class Mass:
    """So many items with so many orders each."""

    items: int
    orders_each: int

    @property
    def orders(self) -> int:
        return self.items * self.orders_each


LINES, FULL_LINES = Mass(1000, 300), Mass(1000, 1000)
HOLDS, FULL_HOLDS = Mass(1000, 100), Mass(1000, 1000)


def proof(full: bool) -> list[Row]:
    """Both events, each in a database of its own."""
    lines, holds = (FULL_LINES, FULL_HOLDS) if full else (LINES, HOLDS)
    return [
        at_once(
            f"{lines.items:,} items with {lines.orders_each:,} waiting close at once",
            lines,
            stock=0,
            due="update flashsale_data.items set closes_at = clock_timestamp() "
            "where sku like 'mass%'",
            left="select count(*) from flashsale_data.orders o "
            "join flashsale_data.items i using (item_id) "
            "where o.status = 'waiting' and i.sku like 'mass%'",
        ),
        at_once(
            f"{holds.orders:,} holds of {holds.items:,} items expire at once",
            holds,
            stock=holds.orders_each,
            due="update flashsale_data.orders set expires_at = clock_timestamp() + '1 s' "
            "where expires_at > clock_timestamp() + '1 day'",
            left="select count(*) from flashsale_data.orders o "
            "where o.customer_id like 'customer %' and not o.recycled",
        ),
    ]


def at_once(name: str, mass: Mass, *, stock: int, due: str, left: str) -> Row:
    """Makes the orders, lets them fall due by one statement, and watches the worker end them all.

    due: makes them due. left: counts those that still have to be dealt with.
    """
    with Fleet() as fleet, admin_of(fleet) as conn:
        fleet.add_provider()
        calm = CalmLine(fleet.database_url(), conn)
        _reserve(conn, fleet.database_url(), mass, stock)
        fleet.add_worker("worker")
        fleet.wait_until_it_works(30)
        with calm:
            conn.execute(due)
            watched = Progress()
            watched.until_none_is_left(lambda: int(value(conn, left)))
        problems = calm.too_slow(max(MEANWHILE_SECONDS, MEANWHILE_SHARE * watched.took))
        problems += watched.problems + fleet.ended
        problems += [str(tuple(row)) for row in rows(conn, "select * from flashsale.violation")]
    return Row(
        name,
        mass.orders,
        acknowledged=mass.orders,
        violations=problems,
        note=f"done in {watched.took:.0f} s, never still for more than {watched.longest:.1f} s; "
        f"another line served {calm.handovers} times meanwhile, the slowest {calm.slowest:.2f} s",
    )


def admin_of(fleet: Fleet) -> Connection:
    """A superuser's session in a fleet's migrated database."""
    fleet.migrate()
    return admin(fleet.postgres)


def _reserve(conn: Connection, url: str, mass: Mass, stock: int) -> None:
    ids = [item(conn, f"mass {n}", stock=stock, hold_seconds=A_WEEK) for n in range(mass.items)]
    wanted = [item_id for item_id in ids for _ in range(mass.orders_each)]

    def reserve(first: int) -> None:
        some = wanted[first : first + BATCH]
        customers = [f"customer {first + n}" for n in range(len(some))]
        with connect(url) as session:
            call_all(session, "reserve_many", some, customers)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(reserve, range(0, len(wanted), BATCH)))


@dataclass
class Progress:
    """How the amount of what is due went down."""

    took: float = 0.0
    longest: float = 0.0
    """Seconds without any progress."""
    problems: list[str] = field(default_factory=list)

    def until_none_is_left(self, left: Callable[[], int]) -> None:
        began = moved = time.monotonic()
        before = first = left()
        if not before:
            self.problems.append("nothing fell due")
        while before:
            time.sleep(LOOK_SECONDS)
            now, still = time.monotonic(), left()
            if still < before:
                self.longest = max(self.longest, now - moved)
                before, moved = still, now
            elif now - moved > PROGRESS_SECONDS:
                self.problems.append(
                    f"{before:,} of {first:,} are left, and nothing happens for {now - moved:.0f} s"
                )
                self.longest = now - moved
                break
        self.took = time.monotonic() - began


class CalmLine(threading.Thread):
    """An item with one unit: each holder cancels at once, and the next customer has to get it.

    handovers: how often that happened. slowest: how many seconds a handover took at most.
    """

    def __init__(self, url: str, conn: Connection) -> None:
        super().__init__(daemon=True)
        self.handovers = 0
        self.slowest = 0.0
        self.problems: list[str] = []
        self._url = url
        self._over = threading.Event()
        self._item_id = item(conn, "calm", stock=1, hold_seconds=A_WEEK)
        for first in range(0, CALM_LINE, BATCH):
            customers = [f"patient {first + n}" for n in range(BATCH)]
            call_all(conn, "reserve_many", [self._item_id] * BATCH, customers)

    def __enter__(self) -> CalmLine:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def too_slow(self, seconds: float) -> list[str]:
        """What was wrong, if a handover may take so long."""
        if self.handovers < LEAST_HANDOVERS:
            self.problems.append(f"another line was served {self.handovers} times only")
        if self.slowest > seconds:
            self.problems.append(f"another line stood still for {self.slowest:.1f} s")
        return self.problems

    def run(self) -> None:
        try:
            with connect(self._url) as conn:
                while not self._over.is_set():
                    self._hand_over(conn)
        except psycopg.Error as error:
            self.problems.append(f"another line: {error}")

    def _hand_over(self, conn: Connection) -> None:
        freed = time.monotonic()
        for holder in self._holders(conn):
            call(conn, "cancel", holder.order_id)
        while not self._holders(conn):
            if self._over.is_set():
                self.slowest = max(self.slowest, time.monotonic() - freed)
                return
            time.sleep(0.02)
        self.handovers += 1
        self.slowest = max(self.slowest, time.monotonic() - freed)

    def _holders(self, conn: Connection) -> list[Any]:
        return rows(
            conn,
            "select order_id from flashsale.open_reservation where item_id = %s",
            self._item_id,
        )
