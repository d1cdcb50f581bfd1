"""Concurrent requests for units travel to the database together.

While a batch is in flight the next gathers; when it is back, whatever has come meanwhile goes at
once. So there is no timer: an idle service adds nothing, and a busy one's batches are as large as
it is busy. Tickets are given in order of arrival.

A batch is one transaction, so a member that has to wait makes all wait: for a twin of its own
request, say, which an internal tool holds in an open transaction. Its connection therefore has a
short lock_timeout. When that strikes, nothing was written, and the members go one by one, aside of
the batches: then only the twin waits. It tries again for as long as it may, less and less often,
because each attempt takes a ticket that comes to nothing until a sweep has found it.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, NamedTuple

import asyncpg

from flashsale.api.problems import Overloaded, Refused
from flashsale.database.admission import Gate, Lag
from flashsale.models import Reservation
from flashsale.settings import Settings


class Wish(NamedTuple):
    """A request for a unit; the arguments of flashsale.reserve."""

    item_id: int
    customer_id: str
    idempotency_key: str | None = None
    wait: bool = True


class _Asked(NamedTuple):
    wish: Wish
    answer: asyncio.Future[Any]
    at: float

    def tell(self, answer: Any) -> None:
        if self.answer.done():  # its client has gone
            return
        if isinstance(answer, BaseException):
            self.answer.set_exception(answer)
        else:
            self.answer.set_result(answer)


One = Callable[[Wish, float], Awaitable[Any]]
Many = Callable[[Sequence[Wish], float], Awaitable[Sequence[Any]]]
Read = Callable[[Any], Reservation]


class Gather:
    """Answers wishes by calls of `many`, or of `one`, which is faster for one.

    Both take wishes and the loop's time by which they have to be back, and give rows, which `read`
    reads: later, so that the next batch leaves first. Errors: what they raise; Overloaded when the
    wait would be too long. Who gets an error of a broken connection does not know what happened; a
    retry is safe.
    """

    def __init__(
        self, one: One, many: Many, read: Read, settings: Settings, lag: Lag | None = None
    ) -> None:
        self._one = one
        self._many = many
        self._read = read
        self._size = settings.batch_size
        self._deadline_seconds = settings.reserve_deadline_ms / 1000
        # The last connection is for those who wait for a twin, unless it is the only one.
        self._lanes = max(1, settings.reserve_connections - 1)
        self._gate = Gate(settings.reserve_wait_ms, self._lanes, lag)
        self._aside = asyncio.Semaphore(1)
        self._lock_seconds = settings.reserve_lock_ms / 1000
        self._waiting: deque[_Asked] = deque()
        self._held: Counter[tuple[int, str]] = Counter()  # known to wait: not into another batch
        self._tasks: set[asyncio.Task[None]] = set()
        self._in_flight = 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def retry_after(self) -> int | None:
        """In how many seconds to ask again, if a wish would be refused now."""
        return self._gate.retry_after(len(self._waiting) // self._size)

    async def reserve(self, wish: Wish) -> Reservation:
        self._gate.enter(len(self._waiting) // self._size)
        loop = asyncio.get_running_loop()
        asked = _Asked(wish, loop.create_future(), loop.time())
        if self._held and wish[:2] in self._held:
            self._start(self._serve_aside(asked))
            return self._read(await asked.answer)
        self._waiting.append(asked)
        if self._in_flight < self._lanes:
            self._in_flight += 1
            self._start(self._drain())
        return self._read(await asked.answer)

    async def _drain(self) -> None:
        try:
            while batch := list(self._next()):
                await self._serve(batch)
        finally:
            self._in_flight -= 1

    def _next(self) -> Iterator[_Asked]:
        """Who goes with the next batch. Who has waited too long for it to be back gets an answer:
        the other half of the deadline is the call's."""
        latest = asyncio.get_running_loop().time() - self._deadline_seconds / 2
        room = self._size
        while self._waiting and room:
            asked = self._waiting.popleft()
            if asked.at < latest:
                asked.tell(Overloaded())
            elif not asked.answer.done():
                room -= 1
                yield asked

    async def _serve(self, batch: list[_Asked]) -> None:
        loop = asyncio.get_running_loop()
        began, deadline = loop.time(), batch[0].at + self._deadline_seconds
        try:
            if len(batch) == 1:
                answers: Sequence[Any] = [await self._one(batch[0].wish, deadline)]
            else:
                answers = await self._many([asked.wish for asked in batch], deadline)
        except BaseException as error:
            apart = _is_of_one(error) if len(batch) > 1 else _is_held(error)
            for asked in batch:
                if apart:
                    self._start(self._serve_aside(asked))
                else:
                    asked.tell(error)
            if not isinstance(error, Exception):
                raise
        else:
            for asked, answer in zip(batch, answers, strict=True):
                asked.tell(answer)
        self._gate.called(loop.time() - began)

    async def _serve_aside(self, asked: _Asked) -> None:
        """One attempt at a time, so that who can't be served yet lets the others pass."""
        loop = asyncio.get_running_loop()
        latest = asked.at + self._deadline_seconds / 2
        customer = asked.wish[:2]
        pause_seconds = self._lock_seconds
        self._held[customer] += 1
        try:
            while not asked.answer.done():
                try:
                    async with self._aside:
                        if loop.time() > latest:
                            raise Overloaded
                        asked.tell(await self._one(asked.wish, asked.at + self._deadline_seconds))
                except Exception as error:
                    if not _is_held(error) or loop.time() + pause_seconds > latest:
                        asked.tell(error)
                    else:
                        await asyncio.sleep(pause_seconds)
                        pause_seconds *= 2
        finally:
            self._held -= Counter([customer])

    def _start(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)  # the loop itself keeps only a weak reference
        task.add_done_callback(self._tasks.discard)


def _is_held(error: BaseException) -> bool:
    """Whether a twin, or another verb on the same order, was in the way; nothing was written."""
    return isinstance(error, asyncpg.PostgresError) and error.sqlstate in (
        "55P03",  # lock_timeout
        "40P01",  # deadlock
        "40001",  # the batch met too many twins
    )


def _is_of_one(error: BaseException) -> bool:
    """Whether a batch failed, without a trace, for what may be the doing of one of its members."""
    return (
        _is_held(error)
        or (isinstance(error, Refused) and error.code == "bad_value")
        or (
            isinstance(error, asyncpg.PostgresError)
            and (error.sqlstate or "").startswith(("22", "23", "RV"))
        )
    )
