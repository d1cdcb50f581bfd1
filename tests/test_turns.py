"""What somebody has locked occupies few connections, and delays nobody who does not need it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest

from flashsale.database.calls import Database
from flashsale.database.jobs import Jobs
from flashsale.database.sqlstates import is_passing
from flashsale.database.turns import Turns
from flashsale.models import PaymentEvent
from flashsale.refusals import Overloaded, Unavailable
from http_support import LocalApi, problem, serving, settings
from support import Connection, call, connect, eventually, item, reserve, sweep, value


class Locked:
    """Something that is locked, or not; counts how many calls try it at once."""

    def __init__(self) -> None:
        self.is_locked = True
        self.tries = self.at_once = self.most = 0

    async def call(self) -> str:
        self.tries += 1
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await asyncio.sleep(0.001)
        finally:
            self.at_once -= 1
        if self.is_locked:
            raise asyncpg.LockNotAvailableError
        return "done"


async def until(happened: Callable[[], bool]) -> None:
    for _ in range(20_000):
        if happened():
            return
        await asyncio.sleep(0.001)
    raise TimeoutError


def soon(seconds: float = 30) -> float:
    return asyncio.get_running_loop().time() + seconds


async def test_calls_about_one_thing_are_made_one_at_a_time_until_it_is_free() -> None:
    turns, thing = Turns(2, 0.001), Locked()
    calls = [asyncio.create_task(turns.take("a", thing.call, soon())) for _ in range(8)]
    await until(lambda: thing.tries >= 3)
    assert thing.most == 1
    thing.is_locked = False
    assert await asyncio.gather(*calls) == ["done"] * 8
    assert thing.most == 1
    assert not turns._turns  # noqa: SLF001 - nothing is kept of what is over


async def test_locked_things_share_a_part_of_the_connections() -> None:
    turns, things, busy = Turns(2, 0.001), [Locked() for _ in range(20)], Locked()

    async def call(thing: Locked) -> str:
        busy.at_once += 1
        busy.most = max(busy.most, busy.at_once)
        try:
            return await thing.call()
        finally:
            busy.at_once -= 1

    def about(n: int) -> Any:
        return turns.take(n, lambda: call(things[n]), soon())

    calls = [asyncio.create_task(about(n)) for n in range(20)]
    await until(lambda: min(thing.tries for thing in things) >= 2)
    busy.most = 0  # by now all of them are known to be locked
    for thing in things:
        thing.tries = 0
    await until(lambda: sum(thing.tries for thing in things) >= 40)
    assert busy.most == 2
    for thing in things:
        thing.is_locked = False
    assert await asyncio.gather(*calls) == ["done"] * 20


async def test_the_wait_for_what_stays_locked_is_bounded() -> None:
    turns, thing = Turns(1, 0.001), Locked()
    calls = [turns.take("a", thing.call, soon(0.05)) for _ in range(3)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(answer) for answer in answers] == [Overloaded] * 3
    thing.is_locked = False
    assert await turns.take("a", thing.call, soon()) == "done"


async def test_other_errors_are_not_for_a_retry() -> None:
    async def fail() -> None:
        raise Unavailable

    with pytest.raises(Unavailable):
        await Turns(1, 0.001).take("a", fail, soon())


# On the database


async def ordered(api: LocalApi, shoe: int, customer: str) -> dict[str, Any]:
    answer = await api.order({"item_id": shoe}, customer)
    assert answer.status_code == 201
    return dict(answer.json())


async def test_locked_orders_with_impatient_customers_delay_nobody_else(
    db: Connection, database_url: str
) -> None:
    shoe = item(db, stock=9)
    patient = {"pay_wait_ms": 60_000, "pay_deadline_ms": 120_000, "readiness_timeout_seconds": 30}
    async with serving(settings(database_url, **patient)) as api:
        held = [await ordered(api, shoe, f"held{n}") for n in range(6)]
        other = await ordered(api, shoe, "other")
        with connect(database_url, autocommit=False) as tool:
            ids = [int(order["order_id"]) for order in held]
            tool.execute(
                "select from flashsale_data.orders where order_id = any (%s) for update", [ids]
            )
            pressed = [
                asyncio.create_task(
                    api("DELETE", f"/orders/{order['order_id']}", order["customer_id"])
                )
                for order in held
                for _ in range(8)
            ]
            await asyncio.to_thread(eventually, lambda: blocked(db) > 0)
            for _ in range(10):
                asked = await api("POST", f"/orders/{other['order_id']}/payment", "other")
                assert asked.status_code == 202, asked.text
            assert (await api.pay(other)).json() == {"outcome": "paid"}
            sweep(db)
            assert (await api("GET", "/health/ready")).status_code == 200
            assert not any(task.done() for task in pressed)
            tool.rollback()
        answers = await asyncio.gather(*pressed)
        assert {answer.status_code for answer in answers} == {200}


async def test_a_customer_whose_order_stays_locked_is_asked_to_come_again(
    db: Connection, database_url: str
) -> None:
    shoe = item(db, stock=9)
    async with serving(settings(database_url, pay_wait_ms=200, lock_ms=20)) as api:
        order = await ordered(api, shoe, "ann")
        with connect(database_url, autocommit=False) as tool:
            tool.execute("select from flashsale_data.orders for update")
            answers = await asyncio.gather(
                *(api("DELETE", f"/orders/{order['order_id']}", "ann") for _ in range(4))
            )
            for answer in answers:
                problem(answer, 503, "overloaded")
                assert answer.headers["retry-after"] == "1"
            tool.rollback()
        again = await api("DELETE", f"/orders/{order['order_id']}", "ann")
        assert again.status_code == 200


async def test_changes_of_a_locked_item_delay_no_reads(db: Connection, database_url: str) -> None:
    shoe = item(db, stock=9)
    patient = {"pay_wait_ms": 60_000, "pay_deadline_ms": 120_000, "read_connections": 1}
    async with serving(settings(database_url, **patient)) as api:
        with connect(database_url, autocommit=False) as tool:
            tool.execute("select from flashsale_data.items for update")
            patched = [
                asyncio.create_task(api("PATCH", f"/items/{shoe}", json={"paused": False}))
                for _ in range(6)
            ]
            await asyncio.to_thread(eventually, lambda: blocked(db) > 0)
            for _ in range(10):
                assert (await api("GET", f"/items/{shoe}")).status_code == 200
            assert not any(task.done() for task in patched)
            tool.rollback()
        assert {a.status_code for a in await asyncio.gather(*patched)} == {200}


async def test_a_replica_whose_pools_are_busy_is_ready(db: Connection, database_url: str) -> None:
    database = Database(settings(database_url))
    await database.open()
    try:
        pools = [database._reserve, database._pay, database._read]  # noqa: SLF001 - no public sight of it
        async with asyncio.TaskGroup() as group:
            free = asyncio.Event()
            for pool in pools:
                for _ in range(pool.use.size):
                    group.create_task(keep(pool, free))
            await until(lambda: not any(pool.use.idle for pool in pools))
            assert "migrations" in await database.version()
            await database.sweep_lag_seconds()
            free.set()
    finally:
        await database.close()


async def test_a_storm_of_reads_leaves_webhooks_their_connections(
    db: Connection, database_url: str
) -> None:
    order = reserve(db, item(db), "ann")
    database = Database(settings(database_url, read_wait_ms=100))
    await database.open()
    try:
        async with asyncio.TaskGroup() as group:
            free, pool = asyncio.Event(), database._read  # noqa: SLF001 - no public sight of it
            for _ in range(pool.use.size):
                group.create_task(keep(pool, free))
            await until(lambda: not pool.use.idle)
            event = PaymentEvent(
                event_id="e1",
                type="payment.succeeded",
                session_id="s1",
                payment_id=str(order.payment_id),
                amount=order.amount,
                currency=order.currency,
                occurred_at=order.created_at,
            )
            assert await database.record_payment_event(event) == "paid"
            free.set()
    finally:
        await database.close()


async def keep(pool: Any, free: asyncio.Event) -> None:
    async with pool.connection():
        await free.wait()


async def test_a_worker_waits_for_nobody_who_has_locked_a_payment_whose_job_failed(
    db: Connection, database_url: str
) -> None:
    order = reserve(db, item(db), "ann")
    async with Jobs(settings(database_url, lock_ms=20)) as jobs:
        db.execute("update pgmq.q_payments set read_ct = 9")
        (last_try,) = await jobs.take_payment_jobs(1, 30)
        with connect(database_url, autocommit=False) as tool:
            tool.execute("select from flashsale_data.payments for update")
            with pytest.raises(asyncpg.LockNotAvailableError) as held:
                await jobs.retry("payments", last_try, "no answer")
            assert is_passing(held.value)  # so it is told again, on whatever connection is free
            tool.rollback()
        assert await jobs.retry("payments", last_try, "no answer") == "dead"
    assert value(db, "select status from flashsale_data.payments") == "failed"
    call(db, "cancel", order.order_id)


async def test_a_connection_whose_call_timed_out_is_not_used_again(database_url: str) -> None:
    """Nobody knows what it is still doing, or whose answer comes next on it."""
    database = Database(settings(database_url, pay_connections=1))
    await database.open()
    try:
        pool = database._pay  # noqa: SLF001 - no public sight of it
        before = await pool.one("select pg_backend_pid() as pid")
        now = asyncio.get_running_loop().time()
        with pytest.raises(Unavailable):
            await pool.one("select pg_sleep(3)", deadline=now + 0.05)
        assert (await pool.one("select pg_backend_pid() as pid"))["pid"] != before["pid"]
    finally:
        await database.close()


def blocked(conn: Connection) -> int:
    return int(
        value(
            conn,
            "select count(*) from pg_stat_activity where datname = current_database() "
            "and cardinality(pg_blocking_pids(pid)) > 0",
        )
    )
