"""Event streams of orders: one poller per process reads all orders that are watched.

An order may be read twice at the same time: by the poller, and for a stream that begins. Nobody
can tell which of the two answers is newer. So a state is shown only if its read began after that of
the state shown before had ended; a stream never goes back.

There is no LISTEN/NOTIFY, because a NOTIFY takes a global lock at commit, which would slow down
every reservation. A poll costs the same whether one customer watches an order or ten do.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import count, islice
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from flashsale.database.calls import Database
from flashsale.models import Order
from flashsale.refusals import Refused
from flashsale.settings import Settings

log = logging.getLogger("flashsale.api")

HEARTBEAT = b":\n\n"
RECONNECT = b"retry: 1000\n\n"
_EVER = datetime.max
_AT_ONCE = 500  # orders per query: more would occupy the connection and the event loop for too long


class Seen(NamedTuple):
    """An order as the database had it: at a moment between two marks of the watcher's counter."""

    order: Order
    began: int
    ended: int

    def is_last(self, event_id: str | None) -> bool:
        """Whether the event with this id was about this state, and there will be no other."""
        return self.order.is_final and event_id == _event_id(self.order)


class _Watched:
    """A watched order. `changed` is set at the next change, and then replaced by a new event."""

    __slots__ = ("changed", "ended", "event", "order", "streams")

    def __init__(self, seen: Seen) -> None:
        self.streams = 0
        self.changed = asyncio.Event()
        self.order, _, self.ended = seen
        self.event = _event(seen.order)

    def update(self, seen: Seen) -> None:
        if seen.began < self.ended:
            return
        self.ended = seen.ended
        if _without_time(seen.order) != _without_time(self.order):
            self.order = seen.order
            self.event = _event(seen.order)
            self.wake()

    def wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class Watcher:
    """The orders that are watched, their poller and their streams."""

    def __init__(self, database: Database, settings: Settings) -> None:
        """Reads nothing before start()."""
        self._database = database
        self._poll_seconds = settings.sse_poll_seconds
        self._heartbeat_seconds = settings.sse_heartbeat_seconds
        self._watched: dict[str, _Watched] = {}
        self._marks = count()
        self._closing = False
        self._poller: asyncio.Task[None] | None = None

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return sum(w.streams for w in self._watched.values())

    def start(self) -> None:
        """Begins to poll."""
        self._poller = asyncio.create_task(self._poll(), name="watcher")

    def end_streams(self) -> None:
        """Ends every stream now; the clients reconnect, to another process."""
        self._closing = True
        for watched in self._watched.values():
            watched.wake()

    async def close(self) -> None:
        """Ends the streams and the polling."""
        self.end_streams()
        if self._poller is not None:
            self._poller.cancel()
            with suppress(asyncio.CancelledError):
                await self._poller

    async def see(self, order_id: str) -> Seen:
        """The order as its stream begins. Errors: as of Database.orders_by_id()."""
        (seen,) = await self._read([order_id])
        return seen

    async def stream(self, seen: Seen) -> AsyncIterator[bytes]:
        """The order as server-sent events: now, at each change, until it is final."""
        order_id = seen.order.order_id
        watched = self._watched.get(order_id)
        if watched is None:
            watched = self._watched[order_id] = _Watched(seen)
        else:
            watched.update(seen)
        watched.streams += 1
        try:
            yield RECONNECT
            sent = b""
            while True:
                changed = watched.changed
                if watched.event is not sent:
                    sent, final = watched.event, watched.order.is_final
                    yield sent
                    if final:
                        return
                elif self._closing:
                    return
                elif not await _within(self._heartbeat_seconds, changed):
                    yield HEARTBEAT
        finally:
            watched.streams -= 1
            if not watched.streams and self._watched.get(order_id) is watched:
                del self._watched[order_id]

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._poll_seconds)
            if self._watched:
                try:
                    await self._look()
                except Refused:
                    pass  # the database is away or busy; the pool has logged that
                except Exception as error:
                    log.error("watching failed: error=%s", type(error).__name__, exc_info=error)

    async def _look(self) -> None:
        everybody = iter(list(self._watched))
        while some := list(islice(everybody, _AT_ONCE)):
            for seen in await self._read(some):
                if watched := self._watched.get(seen.order.order_id):
                    watched.update(seen)

    async def _read(self, order_ids: Sequence[str]) -> list[Seen]:
        began = next(self._marks)
        orders = await self._database.orders_by_id(order_ids)
        ended = next(self._marks)
        return [Seen(order, began, ended) for order in orders]


def _without_time(order: Order) -> Order:
    """The order without forecast.as_of, which every sweep changes."""
    return replace(order, forecast=order.forecast and replace(order.forecast, as_of=_EVER))


def _event(order: Order) -> bytes:
    data = msgspec.json.encode(order)
    return b"event: order\nid: %s\ndata: %s\n\n" % (_event_id(order).encode(), data)


def _event_id(order: Order) -> str:
    """Says which state of the order an event is about: its status, and a sum of all the rest."""
    return f"{order.status}-{zlib.crc32(msgspec.json.encode(order)):08x}"


async def _within(seconds: float, event: asyncio.Event) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False
