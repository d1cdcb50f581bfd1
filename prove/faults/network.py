"""Network faults: replies lost after COMMIT, silence, resets, latency; a worker killed in a job."""

from __future__ import annotations

import asyncio
import itertools
import time
from datetime import datetime
from functools import partial
from typing import Any

from prove.customers.client import SharedConnections, Unanswered
from prove.customers.http_sale import PRICE, Size
from prove.faults.trial import Fault, trial
from prove.judge.records import FinalTables
from prove.report import Row
from prove.stage.proxy import Proxy, silence
from prove.stage.service import ServiceInParts

LOAD = Size(customers=1200, per_second=80)
LONG_LOAD = Size(customers=2400, per_second=80)
"""Goes on after the silence."""
SILENCE_SECONDS = 20.0


def lost_replies(full: bool) -> list[Row]:
    """The database commits and its reply is lost; the customer retries with the same key."""
    with ServiceInParts() as service:
        return [asyncio.run(_lost_replies(service, 1000 if full else 100))]


async def _lost_replies(service: ServiceInParts, times: int) -> Row:
    client, wire = SharedConnections(service.api_url), service.api_wire
    item = {"sku": "shoe", "name": "Shoe", "price": PRICE, "currency": "EUR", "hold_seconds": 600}
    _, _, item = await client.request("POST", "/items", body=item | {"stock": times // 2})
    answers: list[dict[str, Any]] = []
    problems = []
    for n in range(times):
        key = {"X-Customer-Id": f"c{n}", "Idempotency-Key": f"k{n}"}
        ask = ("POST", f"/items/{item['item_id']}/orders", key)
        wire.lose_replies = (b"reserved", b"waiting")
        status, _, _ = await client.request(*ask)
        wire.lose_replies = ()
        if wire.lost != n + 1 or status != 503:
            problems.append(f"c{n}: {wire.lost} replies were lost, the answer was {status}")
        answers += [await _until_answered(client, ask) for _ in range(3)]
    client.close()
    database = await asyncio.to_thread(FinalTables.read, service.database_url())
    orders = {order.customer: order for order in database.orders if order.customer}
    if len(orders) != len([o for o in database.orders if o.customer]):
        problems.append("a customer has two orders")
    for told in answers:
        order = orders.get(told["customer_id"])
        deadline = told["expires_at"] and datetime.fromisoformat(told["expires_at"]).timestamp()
        if not order or (order.ticket, order.expires_at) != (told["ticket"], deadline):
            problems.append(f"told {told}, kept {order}")
    problems += database.violations
    return Row("reply lost after COMMIT", wire.lost, len(answers), 0, times, problems)


async def _until_answered(
    client: SharedConnections, ask: tuple[str, str, dict[str, str]]
) -> dict[str, Any]:
    while True:
        try:
            status, _, body = await client.request(*ask)
        except Unanswered:
            continue
        if status < 500:
            return dict(body)
        await asyncio.sleep(0.05)


def wires(full: bool) -> list[Row]:
    """Slow, silent and broken connections from API and worker to Postgres and to the provider."""
    times = 5 if full else 1
    faults: dict[str, Fault] = {"latency 50 ms": _slow, "black hole 20 s": _silent}
    faults["connections reset"] = _reset
    return [
        trial(name, LONG_LOAD if fault is _silent else LOAD, fault, times, make=ServiceInParts)
        for name, fault in faults.items()
    ]


def _slow(service: ServiceInParts) -> int:
    for wire in service.wires:
        wire.latency_seconds = 0.025  # each way
    time.sleep(5)
    for wire in service.wires:
        wire.latency_seconds = 0.0
    return 1


def _silent(service: ServiceInParts) -> int:
    with silence(*service.wires):
        time.sleep(SILENCE_SECONDS)
        held = sum(wire.held_bytes for wire in service.wires)
    return int(held > 0)


def _reset(service: ServiceInParts) -> int:
    for _ in range(20):
        for wire in service.wires:
            wire.reset()
        time.sleep(0.1)
    return 1


def worker_kills(full: bool) -> list[Row]:
    """The worker is killed at each point between taking a job and acknowledging it, in turn."""
    points = itertools.cycle(
        [
            partial(_kill_worker, wire="provider_wire", requests=True),  # before the call
            partial(_kill_worker, wire="provider_wire", replies=True),  # after the call
            partial(_kill_worker, wire="worker_wire", requests=True),  # before its result is stored
            partial(_kill_worker, wire="worker_wire", replies=True),  # after its result is stored
        ]
    )
    times = 48 if full else 8
    size = Size(customers=240 * times, per_second=60)
    return [
        trial(
            "worker killed in mid-job",
            size,
            lambda it: next(points)(it),
            times,
            make=ServiceInParts,
        )
    ]


def _kill_worker(service: ServiceInParts, wire: str, **held: bool) -> int:
    """Holds back bytes to or from the worker, and kills the worker while it waits."""
    proxy: Proxy = getattr(service, wire)
    proxy.hold(**held)
    deadline = time.monotonic() + 5
    while not proxy.held_bytes and time.monotonic() < deadline:
        time.sleep(0.005)
    hit = service.kill("worker") if proxy.held_bytes else 0
    proxy.reset()
    proxy.hold()
    return hit
