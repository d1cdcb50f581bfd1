"""A storm of orders for several units: all at once, and at the end every unit is sold."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import psycopg
import pytest
from prove.judge.checker import judge
from prove.judge.history import History
from prove.judge.line import (
    groups_get_what_is_there,
    limits_hold,
    served_in_order,
    set_aside_units_move_on,
)
from prove.judge.money import the_amount_follows_the_units
from prove.judge.orders import every_hold_gets_its_window, times_make_sense
from prove.judge.records import FinalTables, Run
from prove.judge.units import freed_units_are_offered_again, never_oversold

from flashsale.testing.calls import call_all
from support import (
    Call,
    Connection,
    call,
    item,
    item_status,
    pay,
    rows,
    sessions,
    settle,
    sweep,
    value,
)

STOCK = 500
MAX_PER_ORDER = 4
LIMIT = 6
BATCH = 50
BOUND_SECONDS = 10.0
"""Within which a freed unit is offered again, on a machine that has much else to do."""
JUDGED = (
    never_oversold,
    freed_units_are_offered_again,
    served_in_order,
    set_aside_units_move_on,
    groups_get_what_is_there,
    limits_hold,
    times_make_sense,
    every_hold_gets_its_window,
    the_amount_follows_the_units,
)
"""What the independent checker can judge by the tables alone.

Not one_live_order_a_customer, which the unique index holds: here a customer uses many connections,
and the time of a batch that begins while they cancel an order is earlier than the cancellation.
"""
CLIENTS = 6
CUSTOMERS_PER_REQUEST = 0.7
"""So some customers ask again, within their limit or not."""
RecordProperty = Callable[[str, object], None]


def keep_sweeping(conn: Connection, done: threading.Event) -> None:
    while not done.is_set():
        sweep(conn)


def keep_watching(conn: Connection, done: threading.Event) -> int:
    """Counts the units that are held and paid, which are never more than the stock."""
    looks = 0
    while not done.is_set():
        held = value(
            conn,
            "select coalesce(sum(units), 0) from flashsale.order_status "
            "where status in ('reserved', 'settling', 'paid')",
        )
        assert held <= STOCK
        looks += 1
    return looks


def request(dice: random.Random, customers: int) -> tuple[str, int, int, bool]:
    """Somebody asks for 1 to 4 units, and may be content with fewer, or not want to wait."""
    quantity = dice.randint(1, MAX_PER_ORDER)
    least = dice.randint(1, quantity) if dice.random() < 0.4 else quantity
    return f"c{dice.randrange(customers)}", quantity, least, dice.random() < 0.8


def ask(conn: Connection, shoe: int, asked: list[tuple[str, int, int, bool]]) -> list[Any]:
    """The answers to a batch; to a single request, those of reserve."""
    if len(asked) == 1:
        who, quantity, least, wait = asked[0]
        return [call(conn, "reserve", shoe, who, None, wait, quantity, least)]
    customers, quantities, minima, waits = (list(column) for column in zip(*asked, strict=True))
    return call_all(
        conn,
        "reserve_many",
        *([shoe] * len(asked), customers, None, waits, quantities, minima),
    )


def act(conn: Connection, order: Any, dice: random.Random) -> str:
    """What the customer of a new order does next."""
    roll = dice.random()
    if order.outcome == "reserved" and roll < 0.3:
        return f"pay {pay(conn, order).outcome}"
    if order.outcome in ("reserved", "waiting") and roll < 0.55:
        try:
            return f"cancel {call(conn, 'cancel', order.order_id).outcome}"
        except psycopg.Error as error:
            if error.sqlstate != "RV202":
                raise
    return "nothing"  # a hold that nobody pays expires


def play(conn: Connection, shoe: int, seed: int, requests: int, customers: int) -> Counter[str]:
    """One client: asks in batches and alone, rolls back, cancels and pays."""
    dice = random.Random(seed)
    count: Counter[str] = Counter()
    while requests:
        size = min(requests, BATCH if dice.random() < 0.9 else 1)
        requests -= size
        asked = [request(dice, customers) for _ in range(size)]
        if dice.random() < 0.05:
            with conn.transaction(force_rollback=True):
                count["rolled back"] += len(ask(conn, shoe, asked))
            continue
        for order, (_, quantity, least, _) in zip(ask(conn, shoe, asked), asked, strict=True):
            count[order.outcome] += 1
            if order.outcome == "reserved":
                assert least <= order.units <= quantity
                assert order.amount == 1000 * order.units
            count[act(conn, order, dice)] += 1
    return count


def sell_the_rest(conn: Connection, shoe: int) -> None:
    """Pays every hold, and lets new customers come for what is left, until all is paid."""
    deadline = time.monotonic() + 40
    while item_status(conn, shoe).paid < STOCK:
        assert time.monotonic() < deadline, f"units stay unsold: {item_status(conn, shoe)}"
        ask(conn, shoe, [(f"late {n}", 1, 1, True) for n in range(BATCH)])
        settle(conn)
        for hold in rows(conn, "select * from flashsale.order_status where status = 'reserved'"):
            pay(conn, hold)


def storm(db: Connection, url: str, requests: int) -> Counter[str]:
    shoe = item(
        db,
        stock=STOCK,
        hold_seconds=1,
        max_waiting=1000,
        max_per_order=MAX_PER_ORDER,
        max_per_customer=LIMIT,
    )
    customers = int(requests * CUSTOMERS_PER_REQUEST)
    done = threading.Event()
    with sessions(url, CLIENTS + 3) as conns:
        background = [
            Call(partial(keep_sweeping, conns[-1], done)),
            Call(partial(keep_sweeping, conns[-2], done)),
            Call(partial(keep_watching, conns[-3], done)),
        ]
        try:
            running = [
                Call(partial(play, conns[n], shoe, n, requests // CLIENTS, customers))
                for n in range(CLIENTS)
            ]
            counts = [it.result(240) for it in running]
        finally:
            done.set()
        looks = background[-1].result()
        for it in background:
            it.result()
    assert looks > 5
    sell_the_rest(db, shoe)

    shown = item_status(db, shoe)
    assert (shown.paid, shown.available, shown.stock) == (STOCK, 0, STOCK)
    sold = rows(
        db,
        "select customer_id, sum(units) as units, count(*) as orders from flashsale.order_status "
        "where status = 'paid' group by customer_id",
    )
    assert sum(it.units for it in sold) == STOCK
    assert max(it.units for it in sold) <= LIMIT
    assert rows(db, "select * from flashsale.violation") == []
    run = Run(History(), FinalTables.read(url), [], {shoe: STOCK}, BOUND_SECONDS)
    assert judge(run, only=JUDGED) == []
    total: Counter[str] = sum(counts, Counter())
    total["bought again"] = sum(it.orders > 1 for it in sold)
    return total


def test_a_short_storm_of_orders_for_several_units_sells_every_unit(
    db: Connection, database_url: str
) -> None:
    count = storm(db, database_url, 1200)
    assert count["reserved"] > 50 and count["waiting"] > 50 and count["rolled back"]


@pytest.mark.storm
@pytest.mark.alone
@pytest.mark.timeout(300)
def test_30_000_requests_for_1_to_4_units_sell_500_units_and_no_more(
    db: Connection, database_url: str, record_property: RecordProperty
) -> None:
    began = time.monotonic()
    count = storm(db, database_url, 30_000)
    assert count["rolled back"] > 500
    assert count["pay paid"] > 20 and count["cancel cancelled"] > 200 and count["waiting"] > 500
    for what, times in count.items():
        record_property(what, times)
    record_property("seconds", round(time.monotonic() - began, 1))
