"""One trial: a sale under load, a fault during the sale, and the checker's verdict."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from prove.customers.http_sale import HttpSale, Size
from prove.judge.checker import INVARIANTS, exercised, judge
from prove.judge.records import FinalTables, Invariant, Run, read_ledger
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
    with make() as service:
        sale = HttpSale(service.api_url, service.provider_url, size, SEED)
        problems = asyncio.run(struck(service, sale, fault, times))
        run = evidence(service, sale)
    if fault is None:
        problems += server_errors(sale)
    return verdict(name, run, problems, times if fault else 0, only)


def evidence(service: Service, sale: HttpSale) -> Run:
    """What a sale that is over left behind."""
    return Run(
        sale.history,
        FinalTables.read(service.database_url()),
        read_ledger(service.ledger),
        sale.stock,
        BOUND_SECONDS,
        [(begin, end + BOUND_SECONDS) for begin, end in service.outages],
        service.provider_outages,
    )


def server_errors(sale: HttpSale, *, but: Collection[tuple[str, int]] = ()) -> list[str]:
    """Answers with a 5xx, but for these kinds of operations and statuses."""
    return [
        f"{op.kind} got {op.status}"
        for op in sale.history.ops
        if (op.status or 0) >= 500 and (op.kind, op.status) not in but
    ]


def verdict(
    name: str,
    run: Run,
    problems: Sequence[str],
    injected: int,
    only: Sequence[Invariant] = INVARIANTS,
    note: str = "",
    at_least: dict[str, int] = EXERCISE,
) -> Row:
    """The checker's verdict on a run, beside the problems that were found during it."""
    outcomes = run.history.outcomes()
    count = exercised(run)
    began = run.history.ops[0].asked + run.history.epoch
    down = max(0.0, run.database.now - began - run.fair_seconds(began, run.database.now))
    sold = count["reserved -> paid"] + count["settling -> paid"]
    told = f"{sold} sold, {count['reserved -> expired']} expired, "
    told += f"{count['void']} tickets burned, {down:.1f} s of outages"
    return Row(
        name,
        injected,
        outcomes["ok"],
        outcomes["refused"],
        outcomes["unknown"],
        [*problems, *judge(run, at_least, only)],
        f"{told}; {note}" if note else told,
    )
