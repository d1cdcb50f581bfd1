"""Requests for units that travel together, and whom one that fails or waits disturbs: nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from flashsale.database import Database
from flashsale.errors import Overloaded, Unavailable
from flashsale.gather import Gather, Wish
from flashsale.models import Reservation
from http_support import Api, api_fixture, problem, serving, settings  # noqa: F401
from support import Connection, connect, eventually, item, reserve, rows, value


class Calls:
    """A database that answers when it is told to."""

    def __init__(self) -> None:
        self.made: list[list[Wish]] = []
        self.may_answer = asyncio.Event()

    async def one(self, wish: Wish, _deadline: float) -> Reservation:
        return (await self.many([wish], _deadline))[0]

    async def many(self, wishes: Sequence[Wish], _deadline: float) -> list[Reservation]:
        self.made.append(list(wishes))
        await self.may_answer.wait()
        return [Reservation(wish.customer_id, None, None) for wish in wishes]

    def gather(self, **changes: Any) -> Gather:
        wanted = settings("postgresql://nowhere", **changes)
        return Gather(self.one, self.many, lambda row: row, wanted)


def wishes(count: int, first: int = 0) -> list[Wish]:
    return [Wish(1, f"c{n}") for n in range(first, first + count)]


def ask(gather: Gather, asked: Sequence[Wish]) -> list[asyncio.Task[Reservation]]:
    return [asyncio.create_task(gather.reserve(wish)) for wish in asked]


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_request_alone_goes_at_once() -> None:
    calls = Calls()
    (task,) = ask(calls.gather(), wishes(1))
    await turns()  # no timer: nothing but turns of the loop
    assert calls.made == [wishes(1)]
    calls.may_answer.set()
    assert (await task).outcome == "c0"


async def test_while_a_batch_is_in_flight_the_next_gathers_in_order_and_bounded() -> None:
    calls = Calls()
    gather = calls.gather(batch_size=10)
    tasks = ask(gather, wishes(1))
    await turns()
    tasks += ask(gather, wishes(25, 1))
    await turns()
    assert len(calls.made) == 1
    assert gather.waiting == 25
    calls.may_answer.set()
    assert [r.outcome for r in await asyncio.gather(*tasks)] == [w[1] for w in wishes(26)]
    assert [len(made) for made in calls.made] == [1, 10, 10, 5]
    assert [wish for made in calls.made for wish in made] == wishes(26)


async def test_who_has_gone_is_not_asked_for_and_disturbs_nobody() -> None:
    calls = Calls()
    gather = calls.gather()
    tasks = ask(gather, wishes(1))
    await turns()
    tasks += ask(gather, wishes(3, 1))
    await turns()
    tasks[0].cancel()  # in flight
    tasks[2].cancel()  # waits
    calls.may_answer.set()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(d) for d in done] == [
        asyncio.CancelledError,
        Reservation,
        asyncio.CancelledError,
        Reservation,
    ]
    assert calls.made[1] == [Wish(1, "c1"), Wish(1, "c3")]


async def test_what_would_wait_too_long_is_refused_at_once() -> None:
    calls = Calls()
    gather = calls.gather(batch_size=1, reserve_wait_ms=1000, reserve_deadline_ms=60_000)
    gather._gate.called(8 * 0.6)  # lately a call took 0.6 s
    tasks = ask(gather, wishes(1))
    await turns()
    tasks += ask(gather, wishes(2))
    await turns()
    (refused,) = await asyncio.gather(*ask(gather, wishes(1)), return_exceptions=True)
    assert isinstance(refused, Overloaded) and refused.retry_seconds == 2
    calls.may_answer.set()
    await asyncio.gather(*tasks)


async def test_who_could_not_be_answered_by_the_deadline_is_not_sent() -> None:
    calls = Calls()
    gather = calls.gather(reserve_deadline_ms=100)
    tasks = ask(gather, wishes(1))
    await turns()
    tasks += ask(gather, wishes(2, 1))
    await asyncio.sleep(0.06)
    calls.may_answer.set()
    _, *late = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(error) for error in late] == [Overloaded, Overloaded]
    assert len(calls.made) == 1


# On the database


@asynccontextmanager
async def counted(url: str, **changes: Any) -> AsyncIterator[tuple[Database, list[int]]]:
    """The service's database, and the sizes of the calls that it made."""
    database = Database(settings(url, **changes))
    sizes: list[int] = []
    gather = database._gather
    one, many = gather._one, gather._many

    async def count_one(wish: Wish, deadline: float) -> Reservation:
        sizes.append(1)
        answer: Reservation = await one(wish, deadline)
        return answer

    async def count_many(asked: Sequence[Wish], deadline: float) -> Sequence[Reservation]:
        sizes.append(len(asked))
        return await many(asked, deadline)

    gather._one, gather._many = count_one, count_many
    await database.open()
    try:
        yield database, sizes
    finally:
        await database.close()


async def together(database: Database, asked: Sequence[Wish]) -> list[Any]:
    return await asyncio.gather(*map(database.reserve, asked), return_exceptions=True)


async def test_a_hundred_at_once_are_few_calls_in_order(db: Connection, database_url: str) -> None:
    shoe = item(db, stock=50)
    async with counted(database_url) as (database, sizes):
        answers = await together(database, [Wish(shoe, f"c{n}") for n in range(100)])
    assert [a.order.ticket for a in answers] == list(range(1, 101))
    assert [a.outcome for a in answers] == ["reserved"] * 50 + ["waiting"] * 50
    assert len(sizes) <= 2


async def test_a_bad_request_among_good_ones_is_alone_in_its_trouble(
    db: Connection, database_url: str
) -> None:
    shoe = item(db, stock=9)
    bad = [
        Wish(shoe + 1, "bob"),  # no such item
        Wish(shoe, "x" * 129),  # refused by the row
        Wish(shoe, "a\0b"),  # refused by Postgres, and with it the batch
        Wish(2**40, "dan"),  # refused by asyncpg
    ]
    async with counted(database_url) as (database, _):
        for n, wish in enumerate(bad):
            ann, wrong, cid = await together(
                database, [Wish(shoe, f"ann{n}"), wish, Wish(shoe, f"cid{n}")]
            )
            assert (ann.outcome, cid.outcome) == ("reserved", "reserved")
            assert isinstance(wrong, Exception) or wrong.outcome in ("unknown_item", "invalid")
    db.execute("select flashsale.sweep()")


@pytest.mark.parametrize("connections", [1, 2])
async def test_a_twin_that_is_held_delays_its_customer_only(
    db: Connection, database_url: str, connections: int
) -> None:
    shoe = item(db, stock=500)
    async with counted(database_url, reserve_connections=connections, reserve_wait_ms=10) as (
        database,
        _,
    ):
        with connect(database_url, autocommit=False) as tool:
            held = reserve(tool, shoe, "held")
            twin = asyncio.create_task(database.reserve(Wish(shoe, "held")))
            async with asyncio.timeout(1.5):  # the twin alone would take 2 s
                for batch in range(3):
                    asked = [Wish(shoe, f"c{batch}.{n}") for n in range(30)]
                    answers = await together(database, asked)
                    assert {a.outcome for a in answers} == {"reserved"}
                    assert not twin.done()
                    await asyncio.sleep(0.03)  # so that some meet the twin's attempts
            tool.commit()
        answer = await twin
        attempts = value(db, "select flashsale.last_ticket(%s)", shoe) - 91
        assert attempts < 40  # tickets that are lost for a while: a batch's, and few more
        assert answer.order is not None
        assert (answer.outcome, answer.order.order_id) == ("existing", str(held.order_id))


async def test_a_twin_that_is_held_for_too_long_is_told_so(
    db: Connection, database_url: str
) -> None:
    shoe = item(db, stock=50)
    async with serving(settings(database_url, reserve_deadline_ms=600)) as api:
        with connect(database_url, autocommit=False) as tool:
            reserve(tool, shoe, "ann")
            async with asyncio.timeout(2):
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


async def test_a_client_that_disconnects_spoils_nobody(api: Api, db: Connection) -> None:
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


async def test_a_storm_of_reads_and_reserves_leaves_payments_their_connection(
    db: Connection, database_url: str
) -> None:
    shoe = item(db, stock=5)
    async with serving(settings(database_url, reserve_lock_ms=5000)) as api:
        order = (await api.order({"item_id": shoe}, "ann")).json()
        with connect(database_url, autocommit=False) as blocker:
            reserve(blocker, shoe, "bob")
            blocker.execute("select from flashsale_data.items for update")
            stuck = [
                asyncio.create_task(api.order({"item_id": shoe}, "bob")),
                asyncio.create_task(api("PATCH", f"/items/{shoe}", json={"paused": True})),
            ]
            await asyncio.to_thread(eventually, lambda: blocked(db) == 2)
            async with asyncio.timeout(1):
                assert (await api.pay(order)).status_code == 200
        await asyncio.gather(*stuck)


def blocked(conn: Connection) -> int:
    return int(
        value(
            conn,
            "select count(*) from pg_stat_activity where datname = current_database() "
            "and cardinality(pg_blocking_pids(pid)) > 0",
        )
    )


def test_an_unavailable_database_is_told_to_all() -> None:
    async def run() -> None:
        async def broken(*_: object) -> Any:
            raise Unavailable

        gather = Gather(broken, broken, lambda row: row, settings("postgresql://nowhere"))
        answers = await asyncio.gather(*ask(gather, wishes(3)), return_exceptions=True)
        assert [type(a) for a in answers] == [Unavailable] * 3

    asyncio.run(run())
