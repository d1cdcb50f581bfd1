"""The intake gathers requests into batches, and one that fails or waits does not affect others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import asyncpg
import pytest

from flashsale.api import apart
from flashsale.api.intake import Intake
from flashsale.database.calls import Database
from flashsale.models import UnitAnswer, UnitRequest
from flashsale.refusals import Overloaded, Unavailable
from http_support import Api, api_fixture, problem, serving, settings  # noqa: F401 - fixtures
from support import Connection, call, connect, eventually, item, reserve, rows, value


class Calls:
    """A database that answers when the test lets it."""

    def __init__(self) -> None:
        self.made: list[list[UnitRequest]] = []
        self.may_answer = asyncio.Event()

    async def reserve(self, request: UnitRequest, deadline: float) -> UnitAnswer:
        return (await self.reserve_many([request], deadline))[0]

    async def reserve_many(
        self, requests: Sequence[UnitRequest], deadline: float
    ) -> list[UnitAnswer]:
        self.made.append(list(requests))
        await self.may_answer.wait()
        return [UnitAnswer(request.customer_id, None, None) for request in requests]

    async def find_held(self, requests: Sequence[UnitRequest], deadline: float) -> list[bool]:
        return [False] * len(requests)

    def unit_answer(self, row: UnitAnswer) -> UnitAnswer:
        return row

    def intake(self, **changes: Any) -> Intake:
        return Intake(self, settings("postgresql://nowhere", **changes))


def requests(count: int, first: int = 0) -> list[UnitRequest]:
    return [UnitRequest(1, f"c{n}") for n in range(first, first + count)]


def ask(intake: Intake, asked: Sequence[UnitRequest]) -> list[asyncio.Task[UnitAnswer]]:
    return [asyncio.create_task(intake.reserve(request)) for request in asked]


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_single_request_is_sent_at_once() -> None:
    calls = Calls()
    (task,) = ask(calls.intake(), requests(1))
    await turns()  # there is no timer: only turns of the event loop
    assert calls.made == [requests(1)]
    calls.may_answer.set()
    assert (await task).outcome == "c0"


async def test_while_a_batch_is_in_flight_the_next_gathers_in_order_and_bounded() -> None:
    calls = Calls()
    intake = calls.intake(batch_size=10)
    tasks = ask(intake, requests(1))
    await turns()
    tasks += ask(intake, requests(25, 1))
    await turns()
    assert len(calls.made) == 1
    assert intake.waiting == 25
    calls.may_answer.set()
    assert [r.outcome for r in await asyncio.gather(*tasks)] == [w[1] for w in requests(26)]
    assert [len(made) for made in calls.made] == [1, 10, 10, 5]
    assert [request for made in calls.made for request in made] == requests(26)


async def test_requests_of_clients_that_have_gone_are_dropped() -> None:
    calls = Calls()
    intake = calls.intake()
    tasks = ask(intake, requests(1))
    await turns()
    tasks += ask(intake, requests(3, 1))
    await turns()
    tasks[0].cancel()  # in flight
    tasks[2].cancel()  # waits
    calls.may_answer.set()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(d) for d in done] == [
        asyncio.CancelledError,
        UnitAnswer,
        asyncio.CancelledError,
        UnitAnswer,
    ]
    assert calls.made[1] == [UnitRequest(1, "c1"), UnitRequest(1, "c3")]


async def test_a_call_that_would_wait_too_long_is_refused_at_once() -> None:
    calls = Calls()
    intake = calls.intake(batch_size=1, reserve_wait_ms=1000, reserve_deadline_ms=60_000)
    intake._gate.called(8 * 0.6)  # noqa: SLF001 - a past in which a call took 0.6 s
    tasks = ask(intake, requests(1))
    await turns()
    tasks += ask(intake, requests(2))
    await turns()
    (refused,) = await asyncio.gather(*ask(intake, requests(1)), return_exceptions=True)
    assert isinstance(refused, Overloaded) and refused.retry_seconds == 2
    calls.may_answer.set()
    await asyncio.gather(*tasks)


async def test_a_request_that_can_not_be_answered_by_its_deadline_is_not_sent() -> None:
    calls = Calls()
    intake = calls.intake(reserve_deadline_ms=100)
    tasks = ask(intake, requests(1))
    await turns()
    tasks += ask(intake, requests(2, 1))
    await asyncio.sleep(0.06)
    calls.may_answer.set()
    _, *late = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(error) for error in late] == [Overloaded, Overloaded]
    assert len(calls.made) == 1


class Locks(Calls):
    """A database in which other transactions hold some customers."""

    def __init__(self, *held: UnitRequest) -> None:
        super().__init__()
        self.held = set(held)
        self.may_answer.set()

    async def reserve_many(
        self, requests: Sequence[UnitRequest], deadline: float
    ) -> list[UnitAnswer]:
        self.made.append(list(requests))
        await asyncio.sleep(0)
        if self.held.intersection(requests):
            raise asyncpg.LockNotAvailableError
        return [UnitAnswer(request.customer_id, None, None) for request in requests]

    async def find_held(self, requests: Sequence[UnitRequest], deadline: float) -> list[bool]:
        await asyncio.sleep(0)
        return [request in self.held for request in requests]


async def test_a_held_customer_joins_no_batch_until_free() -> None:
    ann, bob = UnitRequest(1, "ann"), UnitRequest(1, "bob")
    calls = Locks(ann)
    intake = calls.intake(reserve_lock_ms=1, reserve_deadline_ms=60_000)
    first = ask(intake, [ann])
    await turns(20)
    assert calls.made == [[ann]]  # that is how it becomes known
    for _ in range(5):
        tasks = ask(intake, [ann, bob, UnitRequest(2, "ann"), UnitRequest(2, "cid")])
        assert len(await asyncio.gather(*tasks[1:])) == 3
        first.append(tasks[0])
        await asyncio.sleep(0.002)
    assert not any(ann in made for made in calls.made[1:])
    assert not any({r.item_id for r in made} == {1, 2} for made in calls.made)
    assert not any(task.done() for task in first)
    calls.held.clear()
    answers = await asyncio.wait_for(asyncio.gather(*first), timeout=10)
    assert {answer.outcome for answer in answers} == {"ann"}


async def test_whoever_is_held_unnoticed_is_tried_alone() -> None:
    """By a lock that find_held does not know, or that came after it had answered."""

    class Blind(Locks):
        async def find_held(self, requests: Sequence[UnitRequest], deadline: float) -> list[bool]:
            return [False] * len(requests)

    ann = UnitRequest(1, "ann")
    calls = Blind(ann)
    intake = calls.intake(reserve_lock_ms=1, reserve_deadline_ms=60_000)
    (held,) = ask(intake, [ann])

    def tried_again(since: int) -> bool:
        return [ann] in calls.made[since:]

    await asyncio.to_thread(eventually, partial(tried_again, 2))
    for n in range(5):
        tried = len(calls.made)
        await asyncio.gather(*ask(intake, requests(20, 20 * n)))
        await asyncio.to_thread(eventually, partial(tried_again, tried))
    assert all(made == [ann] for made in calls.made if ann in made)
    calls.held.clear()
    assert (await held).outcome == "ann"


async def test_an_item_without_held_customers_goes_with_the_others_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(apart, "REMEMBERED_SECONDS", 0.01)
    calls = Locks(UnitRequest(1, "c0"))
    intake = calls.intake(reserve_lock_ms=1)
    tasks = ask(intake, requests(1))
    await turns(20)
    calls.held.clear()
    await asyncio.gather(*tasks)
    await asyncio.sleep(0.02)
    calls.made.clear()
    both = [UnitRequest(2, "a"), UnitRequest(1, "b"), UnitRequest(2, "c")]
    await asyncio.gather(*ask(intake, both))
    assert any({r.item_id for r in made} == {1, 2} for made in calls.made)


async def test_held_customers_that_are_too_many_are_refused_at_once() -> None:
    held = requests(30)
    calls = Locks(*held)
    intake = calls.intake(batch_size=20, reserve_deadline_ms=60_000)
    tasks = ask(intake, held)
    for _ in range(100):
        await asyncio.sleep(0.001)
    refused = [task for task in tasks if task.done()]
    assert len(refused) == 10
    assert {type(task.exception()) for task in refused} == {Overloaded}
    calls.held.clear()
    assert len(await asyncio.gather(*set(tasks).difference(refused))) == 20


# On the database


class Counting(Database):
    """The service's database; counts the requests of each call."""

    sizes: list[int]

    async def reserve(self, request: UnitRequest, deadline: float) -> Any:
        self.sizes.append(1)
        return await super().reserve(request, deadline)

    async def reserve_many(self, requests: Sequence[UnitRequest], deadline: float) -> Any:
        self.sizes.append(len(requests))
        return await super().reserve_many(requests, deadline)


@asynccontextmanager
async def counted(url: str, **changes: Any) -> AsyncIterator[tuple[Intake, list[int]]]:
    """An intake in front of the service's database, and the sizes of the calls that it made."""
    wanted = settings(url, **changes)
    database = Counting(wanted)
    database.sizes = []
    await database.open()
    intake = Intake(database, wanted)
    with intake.measured():
        try:
            yield intake, database.sizes
        finally:
            await database.close()


async def together(intake: Intake, asked: Sequence[UnitRequest]) -> list[Any]:
    return await asyncio.gather(*map(intake.reserve, asked), return_exceptions=True)


async def test_a_hundred_requests_at_once_are_few_calls_in_order(
    db: Connection, database_url: str
) -> None:
    shoe = item(db, stock=50)
    async with counted(database_url) as (intake, sizes):
        answers = await together(intake, [UnitRequest(shoe, f"c{n}") for n in range(100)])
    assert [a.order.ticket for a in answers] == list(range(1, 101))
    assert [a.outcome for a in answers] == ["reserved"] * 50 + ["waiting"] * 50
    assert len(sizes) <= 2


async def test_a_bad_request_in_a_batch_fails_alone(db: Connection, database_url: str) -> None:
    shoe = item(db, stock=9)
    bad = [
        UnitRequest(shoe + 1, "bob"),  # no such item
        UnitRequest(shoe, "x" * 129),  # refused by the row
        UnitRequest(shoe, "a\0b"),  # refused by Postgres, and with it the batch
        UnitRequest(2**40, "dan"),  # refused by asyncpg
    ]
    async with counted(database_url) as (intake, _):
        for n, request in enumerate(bad):
            ann, wrong, cid = await together(
                intake, [UnitRequest(shoe, f"ann{n}"), request, UnitRequest(shoe, f"cid{n}")]
            )
            assert (ann.outcome, cid.outcome) == ("reserved", "reserved")
            assert isinstance(wrong, Exception) or wrong.outcome in ("unknown_item", "invalid")
    db.execute("select flashsale.sweep()")


@pytest.mark.parametrize("connections", [1, 2])
async def test_a_duplicate_that_waits_for_a_lock_delays_only_its_customer(
    db: Connection, database_url: str, connections: int
) -> None:
    shoe = item(db, stock=500)
    patient = {"reserve_wait_ms": 60_000, "reserve_deadline_ms": 120_000}
    async with counted(database_url, reserve_connections=connections, **patient) as (intake, _):
        with connect(database_url, autocommit=False) as tool:
            held = reserve(tool, shoe, "held")
            duplicate = asyncio.create_task(intake.reserve(UnitRequest(shoe, "held")))
            for batch in range(3):
                asked = [UnitRequest(shoe, f"c{batch}.{n}") for n in range(30)]
                answers = await together(intake, asked)
                assert {a.outcome for a in answers} == {"reserved"}
                assert not duplicate.done()
                await asyncio.sleep(0.03)  # so that some meet the duplicate's attempts
            tool.commit()
        answer = await duplicate
        lost = value(db, "select flashsale.issued_tickets(%s)", shoe) - 91
        assert lost <= 31  # of the attempt that showed that somebody is held
        assert answer.order is not None
        assert (answer.outcome, answer.order.order_id) == ("existing", str(held.order_id))


async def test_customers_that_a_tool_holds_delay_no_other_item_and_hide_no_units(
    db: Connection, database_url: str
) -> None:
    shoe, hat = item(db, stock=500), item(db, stock=500, sku="hat")
    async with counted(database_url, reserve_wait_ms=60_000, reserve_deadline_ms=120_000) as (
        intake,
        _,
    ):
        with connect(database_url, autocommit=False) as tool:
            for n in range(40):
                reserve(tool, shoe, f"held{n}")
            waiting = ask(intake, [UnitRequest(shoe, "held0")])
            await asyncio.to_thread(eventually, lambda: intake._apart._pausing)  # noqa: SLF001 - no public sight of it
            issued = value(db, "select flashsale.issued_tickets(%s)", shoe)
            for n in range(10):
                waiting += ask(intake, [UnitRequest(shoe, f"held{m}") for m in range(40)])
                hats = [UnitRequest(hat, f"c{n}.{m}") for m in range(10)]
                shoes = [UnitRequest(shoe, f"c{n}.{m}") for m in range(10)]
                answers = await together(intake, hats + shoes)
                assert {a.outcome for a in answers} == {"reserved"}
            assert value(db, "select flashsale.issued_tickets(%s)", hat) == 100
            assert value(db, "select flashsale.issued_tickets(%s)", shoe) == issued + 100
            assert not any(task.done() and not task.exception() for task in waiting)
            tool.commit()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert {a.outcome for a in outcomes if isinstance(a, UnitAnswer)} == {"existing"}
        assert {type(a) for a in outcomes} <= {UnitAnswer, Overloaded}


async def test_a_key_that_a_tool_uses_hides_no_units(db: Connection, database_url: str) -> None:
    shoe, ann = item(db, stock=500), "ann"
    reserve(db, shoe, ann)
    patient = {"reserve_wait_ms": 60_000, "reserve_deadline_ms": 120_000}
    async with counted(database_url, **patient) as (intake, _):
        with connect(database_url, autocommit=False) as tool:
            reserve(tool, shoe, ann, "key")
            waiting = ask(intake, [UnitRequest(shoe, ann, "key")])
            await asyncio.to_thread(eventually, lambda: intake._apart._pausing)  # noqa: SLF001 - no public sight of it
            for n in range(5):
                waiting += ask(intake, [UnitRequest(shoe, ann, "key")])
                answers = await together(
                    intake, [UnitRequest(shoe, f"c{n}.{m}") for m in range(10)]
                )
                assert {a.outcome for a in answers} == {"reserved"}
            assert value(db, "select flashsale.issued_tickets(%s)", shoe) == 1 + 50
            assert not any(task.done() for task in waiting)
            tool.commit()
        assert {a.outcome for a in await asyncio.gather(*waiting)} == {"existing"}


async def test_a_batch_keeps_the_keys_of_its_requests(db: Connection, database_url: str) -> None:
    shoe = item(db, stock=9)
    async with counted(database_url) as (intake, sizes):
        asked = [UnitRequest(shoe, f"c{n}", f"key{n}") for n in range(3)]
        before = await together(intake, asked)
        assert max(sizes) > 1
        for answer in before:
            call(db, "cancel", int(answer.order.order_id), answer.order.customer_id)
        for answer, again in zip(before, await together(intake, asked), strict=True):
            assert again.outcome == "existing"
            assert again.order.order_id == answer.order.order_id


async def test_a_duplicate_that_waits_for_too_long_gets_overloaded(
    db: Connection, database_url: str
) -> None:
    shoe = item(db, stock=50)
    async with serving(settings(database_url, reserve_deadline_ms=600)) as api:
        with connect(database_url, autocommit=False) as tool:
            reserve(tool, shoe, "ann")
            refused = await api.order({"item_id": shoe}, "ann")
            problem(refused, 503, "overloaded")
            assert refused.headers["retry-after"] == "1"
            tool.rollback()
        assert (await api.order({"item_id": shoe}, "ann")).status_code == 201


async def test_a_batch_whose_connection_breaks_is_unknown_and_safe_to_repeat(
    db: Connection, database_url: str
) -> None:
    shoe = item(db, stock=500)
    customers = [f"c{n}" for n in range(20)]
    bounds = {"reserve_lock_ms": 60_000, "reserve_deadline_ms": 60_000}
    async with serving(settings(database_url, **bounds)) as api:
        with connect(database_url, autocommit=False) as blocker:
            reserve(blocker, shoe, "c7")  # so that the batch is there to be killed
            asking = [
                asyncio.create_task(api.order({"item_id": shoe}, c, headers={"Idempotency-Key": c}))
                for c in customers
            ]
            await asyncio.to_thread(eventually, lambda: kill_who_waits(db))
            for answer in await asyncio.gather(*asking):
                problem(answer, 503, "database_unavailable")
                assert answer.headers["retry-after"] == "1"
            blocker.rollback()
        assert value(db, "select count(*) from flashsale_data.orders") == 0
        orders: list[set[str]] = [set() for _ in customers]
        for _ in range(2):
            for seen, answer in zip(
                orders,
                await asyncio.gather(
                    *(
                        api.order({"item_id": shoe}, c, headers={"Idempotency-Key": c})
                        for c in customers
                    )
                ),
                strict=True,
            ):
                assert answer.status_code in (200, 201), answer.text
                seen.add(answer.json()["order_id"])
        assert [len(seen) for seen in orders] == [1] * 20


def kill_who_waits(conn: Connection) -> int:
    return len(
        rows(
            conn,
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where datname = current_database() and cardinality(pg_blocking_pids(pid)) > 0",
        )
    )


async def test_a_client_that_disconnects_does_not_affect_other_clients(
    api: Api, db: Connection
) -> None:
    shoe = await api.item(stock=100)
    asking = [asyncio.create_task(api.order(shoe, f"c{n}")) for n in range(40)]
    await turns(20)
    for task in asking[::2]:
        task.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.gather(*asking[::2])
    answers = await asyncio.gather(*asking[1::2])
    assert {a.status_code for a in answers} == {201}
    again = [await api.order(shoe, f"c{n}") for n in range(40)]
    assert len({a.json()["order_id"] for a in again}) == 40


async def test_a_storm_of_reads_and_requests_leaves_payments_their_connections(
    db: Connection, database_url: str
) -> None:
    shoe = item(db, stock=5)
    patient = {"reserve_lock_ms": 60_000, "lock_ms": 60_000, "pay_wait_ms": 60_000}
    patient |= {"reserve_deadline_ms": 120_000, "pay_deadline_ms": 120_000}
    async with serving(settings(database_url, **patient)) as api:
        order = (await api.order({"item_id": shoe}, "ann")).json()
        with connect(database_url, autocommit=False) as blocker:
            reserve(blocker, shoe, "bob")
            blocker.execute("select from flashsale_data.items for update")
            stuck = [
                asyncio.create_task(api.order({"item_id": shoe}, "bob")),
                asyncio.create_task(api("PATCH", f"/items/{shoe}", json={"paused": True})),
            ]
            await asyncio.to_thread(eventually, lambda: blocked(db) == 2)
            assert (await api.pay(order)).status_code == 200
            assert not any(task.done() for task in stuck)
            blocker.rollback()
        await asyncio.gather(*stuck)


def blocked(conn: Connection) -> int:
    return int(
        value(
            conn,
            "select count(*) from pg_stat_activity where datname = current_database() "
            "and cardinality(pg_blocking_pids(pid)) > 0",
        )
    )


def test_all_requests_of_a_batch_learn_that_the_database_is_unavailable() -> None:
    async def run() -> None:
        class Broken(Calls):
            async def reserve_many(self, requests: Sequence[UnitRequest], deadline: float) -> Any:
                raise Unavailable

        intake = Broken().intake()
        answers = await asyncio.gather(*ask(intake, requests(3)), return_exceptions=True)
        assert [type(a) for a in answers] == [Unavailable] * 3

    asyncio.run(run())
