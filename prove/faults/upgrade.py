"""A sale goes on while another version takes the place of a version, replica by replica, and back.

Customers come through a gateway, which asks another replica when one refuses or answers 503. A tool
calls the SQL API; it asks again only if a call was under way while a row type got more columns.
Nothing else is done for them: neither the version before nor the new one is told to wait, and the
sale is never paused.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from prove.customers.client import UNREPEATED, Gateway
from prove.customers.http_sale import HttpSale, Size
from prove.customers.sql_tool import SqlTool
from prove.faults.trial import BOUND_SECONDS, SEED, evidence, server_errors, verdict
from prove.judge.aftermath import sell_out
from prove.judge.checker import INVARIANTS
from prove.judge.money import money_in_time_buys
from prove.report import Row
from prove.stage.cluster import admin
from prove.stage.fleet import THIS, Fleet, MigrateFailed
from prove.stage.releases import Release, of_commit, with_a_comment

BEFORE = os.environ.get("PROVE_BEFORE", "4780e69")
"""The version before this one, as a commit; empty: that part is left out. It has no number for what
it needs of SQL. Its replicas stay ready because the version that they look for is left as it was.
"""
REPLICAS = ("one", "two")
PAUSE_SECONDS, FULL_PAUSE_SECONDS = 0.7, 15.0
"""Between two steps."""
LOAD = Size(customers=100_000, per_second=60, ordinary_stock=400, max_per_order=1)
"""Orders for one unit, which the releases before know."""
"""More customers than ever come: the sale lasts as long as the steps do."""

Step = tuple[str, Callable[[], Any]]


def proof(full: bool) -> list[Row]:
    """From the commit before to this version and back; and a change that is compatible."""
    pause = FULL_PAUSE_SECONDS if full else PAUSE_SECONDS
    name = f"upgrade from {BEFORE}, replica by replica, and back"
    with tempfile.TemporaryDirectory(prefix="flashsale-prove-") as folder:
        trees = Path(folder)
        before = of_commit(BEFORE, trees / "before") if BEFORE else None
        if before is not None:
            rows = [upgrade(name, before, THIS, pause)]
        elif BEFORE:
            rows = [Row(name, skipped=f"git has no commit {BEFORE} here")]
        else:
            rows = []
        commented = with_a_comment(THIS, trees)
        name = "one more comment in sql/: every replica stays ready"
        return [*rows, upgrade(name, THIS, commented, pause, and_back=False)]


def upgrade(name: str, old: Release, new: Release, pause: float, *, and_back: bool = True) -> Row:
    """One sale. All replicas say that they are ready. and_back: to the old version at the end."""
    with Fleet() as fleet:
        fleet.migrate(old)
        fleet.add_provider()
        fleet.add_worker("old worker", old)
        for replica in REPLICAS:
            fleet.add_replica(f"old {replica}", old)
        fleet.wait_until_it_works(30)
        fleet.unready.clear()
        gateway = Gateway(fleet.urls)
        sale = HttpSale(gateway, fleet.provider_url, LOAD, SEED)
        steps = list(_steps(fleet, old, new, and_back=and_back))
        tool, problems = asyncio.run(_sell(fleet, sale, steps, pause))
        problems += _older_refuses(fleet, old, new)
        run = evidence(fleet, sale)
        for worker in ("old worker", "new worker"):
            fleet.remove(worker)  # it would open sessions for what is sold now without a provider
        with admin(fleet.postgres) as conn:
            conn.execute("select flashsale.open_item(item_id) from flashsale.item_status")
            problems += sell_out(conn)
    problems += fleet.ended + server_errors(sale, but=UNREPEATED)
    problems += [f"without an answer from any replica: {it}" for it in gateway.unresolved]
    problems += [f"a tool got: {it}" for it in tool.errors]
    if tool.again and not and_back:
        problems.append(f"a tool met {tool.again} new row types, though none has changed")
    if tool.slowest > BOUND_SECONDS:
        problems.append(f"a call of SQL took {tool.slowest:.2f} s")
    problems += incompatible(fleet)
    asked = ", ".join(f"{count} for {why}" for why, count in gateway.repeated.items())
    note = f"asked another replica: {asked or 'never'}; {tool.calls:,} calls of SQL, "
    note += f"{tool.again} asked again for a new row type, the slowest {tool.slowest:.2f} s"
    # The version before took the time at which it heard of money for the time at which it came.
    only = [it for it in INVARIANTS if it is not money_in_time_buys or not and_back]
    return verdict(name, run, problems, len(steps), only, note)


def incompatible(fleet: Fleet) -> list[str]:
    """Replicas that reached the database and said that they are not ready."""
    return [
        f"{replica} was not ready {count} times: {lacking}"
        for (replica, lacking), count in fleet.unready.items()
        if "database" not in lacking and lacking not in ("no answer", "sweep")
    ]


def _steps(fleet: Fleet, old: Release, new: Release, *, and_back: bool) -> Iterator[Step]:
    """To the new version, and back. The old one does not migrate again."""
    yield "migrate", partial(fleet.migrate, new)
    ways = [(new, "new", "old"), *([(old, "old", "new")] if and_back else [])]
    for release, comes, goes in ways:
        for replica in REPLICAS:
            yield (
                f"start {comes} {replica}",
                partial(fleet.add_replica, f"{comes} {replica}", release),
            )
            yield f"stop {goes} {replica}", partial(fleet.remove, f"{goes} {replica}")
        yield f"start {comes} worker", partial(fleet.add_worker, f"{comes} worker", release)
        yield f"stop {goes} worker", partial(fleet.remove, f"{goes} worker")


async def _sell(
    fleet: Fleet, sale: HttpSale, steps: list[Step], pause: float
) -> tuple[SqlTool, list[str]]:
    problems: list[str] = []
    await sale.open()
    tool = SqlTool(fleet.database_url(), sale.history, list(sale.stock)[2])
    load, using = asyncio.create_task(sale.run()), asyncio.create_task(tool.run())
    for name, step in steps:
        await asyncio.sleep(pause)
        try:
            await asyncio.to_thread(step)
        except (MigrateFailed, TimeoutError) as error:
            problems.append(f"{name}: {error}")
            break
    await asyncio.sleep(pause)
    sale.let_nobody_in()
    tool.stop()
    await asyncio.gather(load, using)
    try:
        await sale.finish(fleet.unfinished)
    except TimeoutError as error:
        problems.append(str(error))
    return tool, problems


def _older_refuses(fleet: Fleet, old: Release, new: Release) -> list[str]:
    """Runs the older migrate, if the versions are not the same to it."""
    if not new.migrations() - old.migrations():
        return []
    try:
        fleet.migrate(old)
    except MigrateFailed:
        return []
    return [f"migrate of {old.name} did not refuse the database of {new.name}"]
