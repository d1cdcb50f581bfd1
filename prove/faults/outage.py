"""The payment provider is down when many holds come due, of which none could be paid.

Nobody loses a place to that: they go back to the line, nobody gets an e-mail about it, and when the
provider is back, all get another hold, in the order of their tickets, and a session to pay in.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

from flashsale.testing.calls import Connection, call, call_all, connect, item, value
from prove.faults.mass import admin_of
from prove.judge.deadlines import nobody_loses_a_place_to_an_outage
from prove.judge.history import History
from prove.judge.records import FinalTables, OrderRow, Run, read_ledger
from prove.report import Row
from prove.stage.fleet import Fleet

BATCH = 1000
SERVED_SECONDS = 30.0
"""After the provider's return, by when everybody has to have a session."""
CONCURRENCY = 100
"""Calls at once, as docs/how-to/get-through-an-outage.md reckons them for so many holds: 20,000
calls of up to 0.15 s in 30 s."""
REAL_HOLD_SECONDS = 600
LINE_SHARE = 10
"""One customer in so many more waits behind those who hold a unit."""
SERVED = """
select count(*) from flashsale_data.orders o
join flashsale_data.payments p using (order_id)
where o.status = 'reserved' and p.status = 'open'
"""
MAIL = re.compile(r"mail: to='([^']*)' .*?subject='([^']*)'")
PROMISE = "Shoe: it is your turn"
"""The only mail that is right: they hold a unit, and can pay."""


@dataclass(frozen=True)
class Outage:
    """So many holds of so many seconds, and for how many seconds the provider is down."""

    holds: int
    hold_seconds: int
    seconds: float


WHOLE = Outage(20_000, 30, 60.0)
SMALL = Outage(4_000, 10, 20.0)


def proof(full: bool) -> list[Row]:
    """20,000 holds and an outage of 60 s, or a fifth of that in a quarter of the time."""
    return [outage(WHOLE if full else SMALL)]


def outage(size: Outage) -> Row:
    """One outage of the provider, from before the deadlines of the holds."""
    with Fleet(job_concurrency=CONCURRENCY) as fleet, admin_of(fleet) as conn:
        fleet.add_provider()
        fleet.add_worker("worker")
        fleet.wait_until_it_works(30)
        began = time.time()
        fleet.set_faults(fail=1)
        shoe = item(conn, "shoe", stock=size.holds, hold_seconds=size.hold_seconds)
        _reserve(fleet.database_url(), shoe, size.holds + size.holds // LINE_SHARE)
        # From now on holds are as long as real ones: those that run keep their deadline.
        call(conn, "change_item", shoe, f'{{"hold_seconds": {REAL_HOLD_SECONDS}}}')
        time.sleep(max(0.0, began + size.seconds - time.time()))
        early = _mails(fleet)
        back = time.time()
        fleet.set_faults()
        took = _until_served(conn, size.holds)
        database = FinalTables.read(fleet.database_url())
        ledger = read_ledger(fleet.ledger)
        mails, ended = _mails(fleet), fleet.ended
    run = Run(History(), database, ledger, {shoe: size.holds}, provider_outages=[(began, back)])
    problems = [f"{who} got a mail while nobody could pay: {said}" for who, said in early]
    problems += wrong_mails(mails) + unfair(database.orders, size.holds)
    problems += nobody_loses_a_place_to_an_outage(run)
    problems += [*database.violations, *ended]
    if took > SERVED_SECONDS:
        problems.append(f"not all were served within {SERVED_SECONDS:.0f} s")
    lost = sum(bool(order.lost_holds) for order in database.orders)
    if lost < size.holds:
        problems.append(f"too little exercise: only {lost} holds came due in the outage")
    return Row(
        f"provider down for {size.seconds:.0f} s, {size.holds:,} holds",
        size.holds,
        acknowledged=len(database.orders),
        violations=problems,
        note=f"{lost:,} went back to the line meanwhile; all served {took:.1f} s after its return",
    )


def wrong_mails(mails: list[tuple[str, str]]) -> list[str]:
    """Mails that were wrong: nobody has lost anything, and each is told once that they may pay."""
    problems = [f"{who} got a wrong mail: {said}" for who, said in mails if said != PROMISE]
    count = Counter(who for who, said in mails if said == PROMISE)
    return problems + [f"{who} was told {n} times" for who, n in count.items() if n > 1]


def unfair(orders: list[OrderRow], units: int) -> list[str]:
    """What is not as if there had been no outage: the first hold a unit, the others wait.

    orders: of one item, by ticket.
    """
    problems = [
        f"{order.place} is {order.status}"
        for order in orders
        if order.status != ("reserved" if order.ticket <= units else "waiting")
    ]
    served = [order for order in orders if order.status == "reserved"]
    for before, after in pairwise(served):
        if (before.reserved_at or 0.0) > (after.reserved_at or 0.0):
            problems.append(f"{after.place} was served before {before.place}")
    return problems


def _reserve(url: str, item_id: int, customers: int) -> None:
    def reserve(first: int) -> None:
        names = [f"customer {n}" for n in range(first, min(first + BATCH, customers))]
        with connect(url) as conn:
            call_all(conn, "reserve_many", [item_id] * len(names), names)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(reserve, range(0, customers, BATCH)))


def _until_served(conn: Connection, holds: int) -> float:
    """Waits until all have a session, or twice as long as that may take. Returns the seconds."""
    began = time.monotonic()
    while value(conn, SERVED) < holds and time.monotonic() < began + 2 * SERVED_SECONDS:
        time.sleep(0.5)
    return time.monotonic() - began


def _mails(fleet: Fleet) -> list[tuple[str, str]]:
    """Who was sent which subject so far."""
    return MAIL.findall((fleet.data_dir / "worker.out").read_text())
