"""Payments around the deadline: what counts is when the provider took the money.

Each customer pays within 50 ms before or after the deadline, and the event about it comes up to
1.5 s late. The order is paid exactly if the provider's own captured_at lies before expires_at.
Otherwise the money goes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from prove.customers.client import SharedConnections, Unanswered
from prove.faults.trial import BOUND_SECONDS, SEED
from prove.judge.checker import exercised, judge
from prove.judge.deadlines import settling_is_short
from prove.judge.end import nothing_is_left_over, the_database_agrees
from prove.judge.history import History
from prove.judge.money import every_capture_is_settled_once, money_in_time_buys
from prove.judge.orders import times_make_sense
from prove.judge.records import SAME, FinalTables, Place, Run, read_ledger, time_of
from prove.report import Row
from prove.stage.service import Service

PAYMENTS = 1000
AROUND_SECONDS = 0.05
LATEST_EVENT_MS = 1500
HOLD_SECONDS = 5
PER_SECOND = 40
DRAIN_SECONDS = 60.0
LEAST_IN_TIME, LEAST_LATE, LEAST_SETTLED = 0.25, 0.1, 0.2
"""Shares of the payments, so that both sides of the deadline are tried."""
HOLDS = (
    settling_is_short,
    nothing_is_left_over,
    the_database_agrees,
    every_capture_is_settled_once,
    money_in_time_buys,
    times_make_sense,
)


@dataclass(frozen=True)
class TimedPayment:
    """What the provider said to a customer who paid. captured_at: None if it took no money."""

    place: Place
    captured_at: float | None


def proof(full: bool) -> list[Row]:
    """1,000 payments, or in the full run five times as many."""
    payments = PAYMENTS * (5 if full else 1)
    with Service() as service:
        paid = asyncio.run(_pay_all(service, payments))
        database = FinalTables.read(service.database_url())
        ledger = read_ledger(service.ledger)
    (item_id,) = database.items
    run = Run(History(), database, ledger, {item_id: payments}, BOUND_SECONDS, service.outages)
    problems = misjudged(paid, database) + judge(run, only=HOLDS)
    captured = {it.place: it.captured_at for it in paid if it.captured_at is not None}
    count = Counter(
        captured[order.place] < (order.expires_at or 0)
        for order in database.orders
        if order.place in captured
    )
    settled = exercised(run)["settling -> paid"]
    for what, done, least in (
        ("in time", count[True], LEAST_IN_TIME),
        ("late", count[False], LEAST_LATE),
        ("heard of after the deadline", settled, LEAST_SETTLED),
    ):
        if done < least * payments:
            problems.append(f"too little exercise: {done} of {payments} were {what}")
    return [
        Row(
            f"payments at the deadline ± {AROUND_SECONDS * 1000:.0f} ms, events late",
            payments,
            acknowledged=count.total(),
            refused=payments - count.total(),
            violations=problems,
            note=f"captured in time {count[True]}, late {count[False]}; {settled} paid while "
            "settling",
        )
    ]


def misjudged(paid: list[TimedPayment], database: FinalTables) -> list[str]:
    """Orders that are paid although the money came late, or not although it came in time."""
    orders = {order.place: order for order in database.orders}
    ends: dict[Place, list[str]] = {}
    for payment in database.payments:
        ends.setdefault(payment.place, []).append(payment.status)
    problems = []
    for it in paid:
        order = orders[it.place]
        deadline = order.expires_at or 0.0
        if it.captured_at is None:
            wanted = ("expired", ["voided"])
        elif it.captured_at < deadline:
            wanted = ("paid", ["succeeded"])
        else:
            wanted = ("expired", ["refunded"])
        found = (order.status, ends.get(it.place, []))
        told = f"{it.place}, captured at {it.captured_at}, deadline {deadline}"
        if found != wanted:
            problems.append(f"{told}: {found} instead of {wanted}")
        elif order.paid_at and abs(order.paid_at - (it.captured_at or 0.0)) > SAME:
            problems.append(f"{told}: paid at {order.paid_at}")
    return problems


async def _pay_all(service: Service, payments: int) -> list[TimedPayment]:
    api, provider = SharedConnections(service.api_url), SharedConnections(service.provider_url)
    item = {"sku": "deadline", "name": "Deadline", "price": 1000, "currency": "EUR"}
    item |= {"stock": payments, "hold_seconds": HOLD_SECONDS, "late_payment": "refund"}
    status, _, item = await api.request("POST", "/items", body=item)
    assert status == 201, item
    dice = random.Random(SEED)
    delaying = asyncio.create_task(_delay_events(provider, random.Random(SEED)))
    try:
        customers = []
        for n in range(payments):
            offset = dice.uniform(-AROUND_SECONDS, AROUND_SECONDS)
            customers.append(
                asyncio.create_task(_buy(api, provider, item["item_id"], f"customer-{n}", offset))
            )
            await asyncio.sleep(1 / PER_SECOND)
        paid = list(await asyncio.gather(*customers))
    finally:
        delaying.cancel()
    give_up = time.monotonic() + DRAIN_SECONDS
    while left := await asyncio.to_thread(service.unfinished):
        if time.monotonic() > give_up:
            raise TimeoutError(f"after {DRAIN_SECONDS:g} s still unfinished: {left}")
        await asyncio.sleep(0.2)
    api.close()
    provider.close()
    return paid


async def _delay_events(provider: SharedConnections, dice: random.Random) -> None:
    """Each event is as late as is said at the moment: another delay twenty times a second."""
    while True:
        faults = {"delay_events": 1, "delay_ms": dice.randint(0, LATEST_EVENT_MS)}
        with contextlib.suppress(Unanswered):
            await provider.request("PUT", "/faults", body=faults)
        await asyncio.sleep(0.05)


async def _buy(
    api: SharedConnections, provider: SharedConnections, item_id: int, customer: str, offset: float
) -> TimedPayment:
    who = {"X-Customer-Id": customer}
    status, _, order = await api.request("POST", f"/items/{item_id}/orders", who)
    assert status == 201, order
    url = await _checkout(api, order, who)
    deadline = time_of(order["expires_at"])
    await asyncio.sleep(max(0.0, deadline + offset - time.time()))
    path = f"{urlsplit(url).path}/complete"
    status, _, answer = await provider.request("POST", path, body={"outcome": "succeed"})
    captured_at = answer["captured_at"] if status == 200 else None
    place = (order["item_id"], order["ticket"])
    return TimedPayment(place, None if captured_at is None else time_of(captured_at))


async def _checkout(api: SharedConnections, order: dict[str, Any], who: dict[str, str]) -> str:
    while True:
        _, _, shown = await api.request("GET", f"/orders/{order['order_id']}", who)
        if url := (shown.get("payment") or {}).get("checkout_url"):
            return str(url)
        if shown["status"] != "reserved":
            raise TimeoutError(f"no session was opened: {shown}")
        await asyncio.sleep(0.3)
