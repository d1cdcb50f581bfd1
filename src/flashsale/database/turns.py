"""Turns: calls about one order or item wait for each other outside of the pool.

A verb waits for the row of its order or item while another transaction has locked it: one that an
internal tool has left open, for example. Its customer asks again and again meanwhile. If each of
these calls waited on a connection of its own, nobody else would get one. So of the calls about one
order or item only one at a time has a connection. If it meets a lock, it ends after the
connection's short lock_timeout, with nothing written, gives the connection back, and is made again
after a pause that grows. What was found locked is remembered for a moment: calls about such orders
and items share a part of the connections, however many there are of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import TypeVar

from flashsale.database.sqlstates import is_held
from flashsale.refusals import Overloaded

_REMEMBERED_SECONDS = 10.0  # since it was last found locked

T = TypeVar("T")


class _Turn:
    """Who is about to call for one order or item."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.calls = 0


class Turns:
    """The turns of the calls of one pool."""

    def __init__(self, share: int, pause_seconds: float) -> None:
        """share: how many calls may try locked things at once. pause_seconds: before a retry."""
        self._pause_seconds = pause_seconds
        self._share = asyncio.Semaphore(share)
        self._turns: dict[Hashable, _Turn] = {}
        self._locked_until: dict[Hashable, float] = {}

    async def take(self, about: Hashable, call: Callable[[], Awaitable[T]], latest: float) -> T:
        """Makes the call when it is its turn, again while it meets a lock.

        about: the order or item. latest: the event loop's time until which it may wait.
        Errors: Overloaded after that; what the call raises.
        """
        turn = self._turns.setdefault(about, _Turn())
        turn.calls += 1
        try:
            await _acquire(turn.lock, latest)
            try:
                return await self._insist(about, call, latest)
            finally:
                turn.lock.release()
        finally:
            turn.calls -= 1
            if not turn.calls:
                del self._turns[about]

    async def _insist(self, about: Hashable, call: Callable[[], Awaitable[T]], latest: float) -> T:
        loop = asyncio.get_running_loop()
        pause_seconds = self._pause_seconds
        while True:
            try:
                if self._is_locked(about):
                    return await self._on_the_share(call, latest)
                return await call()
            except Exception as error:
                if not is_held(error):
                    raise
                self._note(about)
                if loop.time() + pause_seconds > latest:
                    raise Overloaded from error
            await asyncio.sleep(pause_seconds)
            pause_seconds *= 2

    async def _on_the_share(self, call: Callable[[], Awaitable[T]], latest: float) -> T:
        await _acquire(self._share, latest)
        try:
            return await call()
        finally:
            self._share.release()

    def _is_locked(self, about: Hashable) -> bool:
        """Whether it was found locked a moment ago."""
        return self._locked_until.get(about, 0.0) > asyncio.get_running_loop().time()

    def _note(self, about: Hashable) -> None:
        now = asyncio.get_running_loop().time()
        self._locked_until = {a: t for a, t in self._locked_until.items() if t > now}
        self._locked_until[about] = now + _REMEMBERED_SECONDS


async def _acquire(lock: asyncio.Lock | asyncio.Semaphore, latest: float) -> None:
    """Errors: Overloaded if it is not free in time."""
    try:
        async with asyncio.timeout_at(latest):
            await lock.acquire()
    except TimeoutError:
        raise Overloaded from None
