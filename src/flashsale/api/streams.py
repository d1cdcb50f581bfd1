"""Orders as they change, for any number of streams: one poller a process asks for all of them.

No LISTEN/NOTIFY: a NOTIFY takes a global lock at commit, in the path that a sale is made of. A
poll costs the same whether ten customers watch an order or one.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from types import FrameType

import msgspec

from flashsale.api.problems import Refused
from flashsale.database.calls import Database
from flashsale.models import Order
from flashsale.settings import Settings

log = logging.getLogger("flashsale.api")

HEARTBEAT = b":\n\n"
RECONNECT = b"retry: 1000\n\n"
_AT_ONCE = 500  # orders: more would hold a connection, and then the event loop, for too long


class _Watched:
    """An order that somebody watches. Whoever waits for `changed` takes the new one next time."""

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
    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._poll_seconds = settings.sse_poll_seconds
        self._heartbeat_seconds = settings.sse_heartbeat_seconds
        self._watched: dict[str, _Watched] = {}
        self._closing = False
        self._poller: asyncio.Task[None] | None = None

    @property
    def streams(self) -> int:
        return sum(w.streams for w in self._watched.values())

    def start(self) -> None:
        self._poller = asyncio.create_task(self._poll(), name="watcher")

    def end_streams(self) -> None:
        """Every stream ends now; their clients come back, to another process."""
        self._closing = True
        for watched in self._watched.values():
            watched.wake()

    async def close(self) -> None:
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
                    pass  # the database is away or busy, which the pool has logged
                except Exception as error:
                    log.error("watching failed: error=%s", type(error).__name__, exc_info=error)

    async def _look(self) -> None:
        # A stream that starts meanwhile may bring a newer order than the one on its way.
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


@contextmanager
def on_termination(callback: Callable[[], None]) -> Iterator[None]:
    """Calls back on SIGTERM and SIGINT, besides what the server does then.

    A server waits for its open responses before it ends the lifespan, and a stream would wait for
    the end of the lifespan. Handlers of the event loop hear of a signal anyway; the one that we
    replace, if it is a function, is called too.
    """
    loop = asyncio.get_running_loop()
    replaced: dict[int, Callable[[int, FrameType | None], object]] = {}

    def heard(signum: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(callback)
        replaced[signum](signum, frame)

    with suppress(ValueError):  # not in the main thread: nobody sends us signals
        for signum in (signal.SIGTERM, signal.SIGINT):
            before = signal.getsignal(signum)
            if callable(before) and before is not signal.default_int_handler:
                replaced[signum] = before
                signal.signal(signum, heard)
    try:
        yield
    finally:
        for number, handler in replaced.items():
            if signal.getsignal(number) is heard:
                signal.signal(number, handler)
