"""Event streams of orders: one poller per process reads all orders that are watched.

There is no LISTEN/NOTIFY, because a NOTIFY takes a global lock at commit, which would slow down
every reservation. A poll costs the same whether one customer watches an order or ten do.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import islice

import msgspec

from flashsale.database.calls import Database
from flashsale.models import Order
from flashsale.refusals import Refused
from flashsale.settings import Settings

log = logging.getLogger("flashsale.api")

HEARTBEAT = b":\n\n"
RECONNECT = b"retry: 1000\n\n"
_AT_ONCE = 500  # orders per query: more would occupy the connection and the event loop for too long


class _Watched:
    """A watched order. `changed` is set at the next change, and then replaced by a new event."""

    __slots__ = ("changed", "event", "order", "streams")

    def __init__(self, order: Order) -> None:
        self.streams = 0
        self.changed = asyncio.Event()
        self.order = order
        self.event = _event(order)

    def update(self, order: Order) -> None:
        if order != self.order:
            self.order = order
            self.event = _event(order)
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

    async def stream(self, order: Order) -> AsyncIterator[bytes]:
        """The order as server-sent events: now, at each change, until it is final."""
        watched = self._watched.get(order.order_id)
        if watched is None:
            watched = self._watched[order.order_id] = _Watched(order)
        else:
            watched.update(order)
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
            if not watched.streams and self._watched.get(order.order_id) is watched:
                del self._watched[order.order_id]

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
        # An order may be newer than the query's answer if a stream started during the query.
        everybody = iter(list(self._watched.items()))
        while some := list(islice(everybody, _AT_ONCE)):
            before = {order_id: (w, w.order) for order_id, w in some}
            for order in await self._database.orders_by_id(list(before)):
                watched, seen = before[order.order_id]
                if watched.order is seen:
                    watched.update(order)


def _event(order: Order) -> bytes:
    data = msgspec.json.encode(order)
    return b"event: order\nid: %08x\ndata: %s\n\n" % (zlib.crc32(data), data)


async def _within(seconds: float, event: asyncio.Event) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False
