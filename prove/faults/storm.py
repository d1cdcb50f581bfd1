"""The storm: no process is killed, and money goes all the ways that it can go.

Customers pay at the last moment and their events are late, so that orders are paid while they
settle. Others pay at a till, give the order back, or are refunded by staff or at the provider. In
the middle the provider is down for a while.
"""

from __future__ import annotations

import asyncio
import time

from prove.customers.http_sale import MONEY_HABITS, HttpSale, Size
from prove.faults.trial import EXERCISE, SEED, evidence, server_errors, verdict
from prove.report import Row
from prove.stage.service import Service

SIZE = Size(
    20_000,
    per_second=250,
    hot_stock=900,
    scarce_stock=40,
    ordinary_stock=400,
    hold_seconds=5,
    patient=0.1,
    habits=MONEY_HABITS,
)
OUTAGE_SECONDS = 20.0
EVENTS_LATE = {"delay_events": 0.9, "delay_ms": 1500, "decline_keeps_open": 0.3}
"""The faults of the provider all the time."""
MONEY_EXERCISE = EXERCISE | {"settling -> paid": 200, "paid -> refunded": 200}
MONEY_EXERCISE |= {"offline payments": 50, "seconds of outage": int(OUTAGE_SECONDS)}
MONEY_EXERCISE |= {"refunded by staff": 20, "refunded by customer": 20, "refunded by provider": 20}
MONEY_EXERCISE |= {"keep_out ok": 5, "extend ok": 1}
MONEY_EXERCISE |= {"groups granted whole": 100, "groups granted in part": 10, "groups": 500}


def proof(full: bool) -> list[Row]:
    """20,000 customers, no process is killed: no violation, no 5xx."""
    return [storm(SIZE) for _ in range(5 if full else 1)]


def storm(size: Size, at_least: dict[str, int] = MONEY_EXERCISE) -> Row:
    """One storm and its verdict."""
    with Service() as service:
        sale = HttpSale(service.api_url, service.provider_url, size, SEED, service.database_url())
        asyncio.run(_blow(service, sale, size))
        run = evidence(service, sale)
    begin, end = service.provider_outages[0]
    note = f"provider down for {end - begin:.0f} s"
    return verdict(
        "storm with an outage of the provider",
        run,
        server_errors(sale),
        1,
        note=note,
        at_least=at_least,
    )


async def _blow(service: Service, sale: HttpSale, size: Size) -> None:
    await asyncio.to_thread(service.set_faults, **EVENTS_LATE)
    await sale.open()
    load = asyncio.create_task(sale.run())
    await asyncio.sleep(max(0.0, size.customers / size.per_second - OUTAGE_SECONDS) / 2)
    began = time.time()
    await asyncio.to_thread(service.set_faults, **EVENTS_LATE, fail=1)
    await asyncio.sleep(OUTAGE_SECONDS)
    await asyncio.to_thread(service.set_faults, **EVENTS_LATE)
    service.provider_outages.append((began, time.time()))
    await load
    await sale.finish(service.unfinished)
