"""One trial: a sale under load, a fault during the sale, and the checker's verdict."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from prove.customers.http_sale import HttpSale, Size
from prove.judge.checker import (
    INVARIANTS,
    FinalTables,
    Invariant,
    Run,
    exercised,
    judge,
    read_ledger,
)
from prove.report import Row
from prove.stage.service import Service

SEED = 20261123
READY_WITHIN_SECONDS = 10.0
BOUND_SECONDS = 2.0
"""Within which a freed unit is offered again, on two cores that also carry all customers."""

EXERCISE = {"reserve -> reserved": 200, "reserve -> waiting": 150, "waiting -> reserved": 10}
EXERCISE |= {"reserved -> paid": 50, "reserved -> expired": 20, "reserved -> cancelled": 20}
EXERCISE |= {"waiting -> cancelled": 20, "waiting -> unserved": 20, "same key again": 20}
EXERCISE |= {"payment failed": 5, "payment voided": 20, "restock ok": 1, "withdraw ok": 1}
"""What a run must have exercised at least, for its verdict to count."""

Fault = Callable[[Any], int]
"""Strikes a service once; returns how much it hit, 0 for nothing."""


async def struck(service: Service, sale: HttpSale, fault: Fault | None, times: int) -> list[str]:
    """Runs the sale with the fault at random times. Returns the problems of the recovery."""
    problems: list[str] = []
    await sale.open()
    load = asyncio.create_task(sale.run())
    dice = random.Random(SEED)
    for n in range(times if fault else 0):
        assert fault
        await asyncio.sleep(dice.uniform(0.5, 2.0))
        began = time.time()
        if not await asyncio.to_thread(fault, service):
            problems.append(f"strike {n} hit nothing")
        await asyncio.sleep(0.1)
        took = await asyncio.to_thread(service.wait_until_it_works, 6 * READY_WITHIN_SECONDS)
        service.outages.append((began, time.time()))
        if took > READY_WITHIN_SECONDS:
            problems.append(f"strike {n}: ready again only after {took:.1f} s")
    await load
    await sale.finish(service.unfinished)
    return problems


def trial(
    name: str,
    size: Size,
    fault: Fault | None = None,
    times: int = 1,
    make: Callable[[], Service] = Service,
    only: Sequence[Invariant] = INVARIANTS,
) -> Row:
    """One storm and its verdict."""
    began = time.time()
    with make() as service:
        sale = HttpSale(service.api_url, service.provider_url, size, SEED)
        problems = asyncio.run(struck(service, sale, fault, times))
        run = Run(
            sale.history,
            FinalTables.read(service.database_url()),
            read_ledger(service.ledger),
            sale.stock,
            BOUND_SECONDS,
            [(begin, end + BOUND_SECONDS) for begin, end in service.outages],
        )
        down = max(0.0, time.time() - began - run.fair_seconds(began, time.time()))
    outcomes = sale.history.outcomes()
    if fault is None:
        problems += [
            f"{op.kind} got {op.status}" for op in sale.history.ops if (op.status or 0) >= 500
        ]
    count = exercised(run)
    note = f"{count['reserved -> paid']} sold, {count['reserved -> expired']} expired, "
    note += f"{count['void']} tickets burned, {down:.1f} s not ready"
    return Row(
        name,
        times if fault else 0,
        outcomes["ok"],
        outcomes["refused"],
        outcomes["unknown"],
        problems + judge(run, EXERCISE, only),
        note,
    )
