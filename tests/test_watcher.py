"""The watcher alone, on a database that a test tells what to answer: streams never go back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from flashsale.api import examples
from flashsale.api.streams import Watcher
from flashsale.database.calls import Database
from flashsale.models import Order
from http_support import settings


class ScriptedDatabase(Database):
    """A database that returns the orders that a test has given to it.

    A read takes its answer as it begins, and returns it while `meanwhile` is set.
    """

    def __init__(self) -> None:
        self.orders: list[Order] = []
        self.polls = self.most = 0
        self.began = asyncio.Event()
        self.meanwhile = asyncio.Event()
        self.meanwhile.set()

    async def orders_by_id(self, order_ids: Any) -> list[Order]:
        self.polls += 1
        self.most = max(self.most, len(order_ids))
        asked = set(order_ids)
        found = [o for o in self.orders if o.order_id in asked]
        self.began.set()
        await self.meanwhile.wait()
        return found


@pytest.fixture
async def told() -> AsyncIterator[tuple[ScriptedDatabase, Watcher]]:
    database = ScriptedDatabase()
    watcher = Watcher(database, settings("postgresql://", sse_poll_seconds=0.01))
    watcher.start()
    yield database, watcher
    await watcher.close()


async def begun(database: ScriptedDatabase, watcher: Watcher, order: Order) -> AsyncIterator[bytes]:
    """A stream that begins with this state of the order."""
    database.orders = [order, *(o for o in database.orders if o.order_id != order.order_id)]
    return watcher.stream(await watcher.see(order.order_id))


async def event_of(stream: AsyncIterator[bytes]) -> Order:
    async with asyncio.timeout(30):
        while True:
            chunk = await anext(stream)
            if b"data: " in chunk:
                data = chunk.split(b"data: ")[1].strip()
                return msgspec.json.decode(data, type=Order)


WAITING = examples.WAITING
NEXT = msgspec.structs.replace(WAITING, position=1)


async def test_one_poll_serves_every_stream(told: tuple[ScriptedDatabase, Watcher]) -> None:
    database, watcher = told
    many = [await begun(database, watcher, WAITING) for _ in range(50)]
    assert [await event_of(s) for s in many] == [WAITING] * 50
    database.orders = [NEXT]
    polls = database.polls
    assert await asyncio.gather(*(event_of(s) for s in many)) == [NEXT] * 50
    assert database.polls - polls <= 3
    for stream in many:
        await stream.aclose()  # type: ignore[attr-defined]
    assert watcher.streams == 0
    await asyncio.sleep(0.03)
    polls = database.polls
    await asyncio.sleep(0.05)
    assert database.polls == polls  # without a stream there are no polls


async def test_a_later_time_of_the_same_chance_is_no_news(
    told: tuple[ScriptedDatabase, Watcher],
) -> None:
    database, watcher = told
    stream = await begun(database, watcher, WAITING)
    assert await event_of(stream) == WAITING
    assert WAITING.forecast is not None
    later = msgspec.structs.replace(
        WAITING.forecast, as_of=WAITING.forecast.as_of + timedelta(seconds=1)
    )
    database.orders = [msgspec.structs.replace(WAITING, forecast=later)]
    for _ in range(3):
        database.began.clear()
        await database.began.wait()
    better = msgspec.structs.replace(later, chance=0.7)
    database.orders = [msgspec.structs.replace(WAITING, forecast=better)]
    assert await event_of(stream) == database.orders[0]
    await stream.aclose()  # type: ignore[attr-defined]


async def test_a_poll_for_thousands_of_orders_is_no_long_call(
    told: tuple[ScriptedDatabase, Watcher],
) -> None:
    """A long poll would occupy the connection, and customers who open a stream would be refused."""
    database, watcher = told
    orders = [msgspec.structs.replace(WAITING, order_id=f"{n}") for n in range(1, 2001)]
    streams = []
    for order in orders:
        database.orders = [order]
        streams.append(await begun(database, watcher, order))
        await event_of(streams[-1])
    database.orders = [msgspec.structs.replace(order, position=1) for order in orders]
    assert [await event_of(stream) for stream in streams] == database.orders
    assert database.most <= 500
    for stream in streams:
        await stream.aclose()  # type: ignore[attr-defined]


RESERVED = msgspec.structs.replace(
    examples.RESERVED, order_id=WAITING.order_id, ticket=WAITING.ticket
)


async def test_a_poll_that_is_late_does_not_take_a_stream_back(
    told: tuple[ScriptedDatabase, Watcher],
) -> None:
    database, watcher = told
    one = await begun(database, watcher, WAITING)
    await event_of(one)
    await hold_a_poll(database)
    late, database.meanwhile = database.meanwhile, set_event()
    two = await begun(database, watcher, NEXT)
    assert await event_of(two) == NEXT
    assert await event_of(one) == NEXT
    late.set()
    assert await event_of(await begun(database, watcher, NEXT)) == NEXT
    last = msgspec.structs.replace(NEXT, position=None, status="cancelled")
    database.orders = [last]
    assert await event_of(one) == last
    with pytest.raises(StopAsyncIteration):
        await anext(one)


async def test_a_stream_that_begins_late_does_not_take_another_one_back(
    told: tuple[ScriptedDatabase, Watcher],
) -> None:
    """It has read the order, and is held up until the others have seen the next state."""
    database, watcher = told
    one = await begun(database, watcher, WAITING)
    assert await event_of(one) == WAITING
    slow = await begun(database, watcher, WAITING)
    database.orders = [RESERVED]
    assert await event_of(one) == RESERVED
    assert await event_of(slow) == RESERVED
    paid = msgspec.structs.replace(RESERVED, status="paid")
    database.orders = [paid]
    assert await event_of(one) == paid
    assert await event_of(slow) == paid


async def hold_a_poll(database: ScriptedDatabase) -> None:
    """Returns when a poll has read its answer, which it does not get until meanwhile is set."""
    database.meanwhile.clear()
    database.began.clear()
    await database.began.wait()


def set_event() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


async def test_a_database_that_fails_only_makes_streams_wait(
    told: tuple[ScriptedDatabase, Watcher],
) -> None:
    database, watcher = told
    stream = await begun(database, watcher, WAITING)
    await event_of(stream)

    async def broken(_: Any) -> list[Order]:
        raise RuntimeError

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(database, "orders_by_id", broken)
        await asyncio.sleep(0.05)
    database.orders = [NEXT]
    assert await event_of(stream) == NEXT


async def test_a_status_that_this_version_does_not_know_ends_no_stream(
    told: tuple[ScriptedDatabase, Watcher],
) -> None:
    """A newer version may have migrated the database."""
    database, watcher = told
    new = msgspec.structs.replace(WAITING, status="of a newer version")
    stream = await begun(database, watcher, WAITING)
    assert await event_of(stream) == WAITING
    for order in (new, NEXT):
        database.orders = [order]
        async with asyncio.timeout(30):
            chunk = await anext(stream)
        assert f'"status":"{order.status}"'.encode() in chunk
    await stream.aclose()  # type: ignore[attr-defined]
