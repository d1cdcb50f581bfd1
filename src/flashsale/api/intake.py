"""The intake: it gathers concurrent requests for units, so that a batch is one database call.

While a batch is in flight, new requests wait. When it is back, all requests that have arrived
meanwhile leave as the next batch. So there is no timer: an idle service adds no delay, and batches
grow with the load. Tickets are given in the order of arrival.

A batch is one transaction, so one request that waits for a lock makes all of them wait. The lock
may be that of a duplicate request, which an internal tool holds in an open transaction. The batch's
connection therefore has a short lock_timeout. When it expires, nothing was written, and the
requests of the batch are sent one by one, beside the batches: then only the one that needs the lock
waits. It is retried until its deadline, at growing intervals, because each attempt takes a ticket
that stays a hole until a sweep fills it.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from flashsale.database.admission import Gate, Lag
from flashsale.database.sqlstates import is_held, may_be_of_one_request
from flashsale.models import UnitAnswer, UnitRequest
from flashsale.refusals import Overloaded
from flashsale.settings import Settings


class UnitCalls(Protocol):
    """The calls that the intake makes. deadline: the event loop's time by which one must be back.

    The calls return rows unread, because the intake reads them only after the next batch has left.
    """

    async def reserve(self, request: UnitRequest, deadline: float) -> Any:
        """The row of one request, which is faster than reserve_many for a single one."""

    async def reserve_many(self, requests: Sequence[UnitRequest], deadline: float) -> Sequence[Any]:
        """The rows of several requests, in their order."""

    def unit_answer(self, row: Any) -> UnitAnswer:
        """The answer that a row contains."""


class _PendingRequest(NamedTuple):
    """A request for a unit whose customer waits for the row."""

    request: UnitRequest
    row: asyncio.Future[Any]
    at: float
    """The loop's time at which it came."""

    @property
    def customer(self) -> tuple[int, str]:
        """The item and the customer: requests that agree in both wait for each other."""
        return self.request[:2]

    def tell(self, row: Any) -> None:
        """Gives the row or an error to the waiting caller, unless the client has gone."""
        if self.row.done():
            return
        if isinstance(row, BaseException):
            self.row.set_exception(row)
        else:
            self.row.set_result(row)


class Intake:
    """Answers requests for units by batched calls of the database.

    Errors: what the calls raise; Overloaded when the wait would be too long. After the error of a
    broken connection it is unknown whether the request had its effect; a retry is safe.
    """

    def __init__(self, calls: UnitCalls, settings: Settings) -> None:
        """calls: the database."""
        self._calls = calls
        self._size = settings.batch_size
        self._deadline_seconds = settings.reserve_deadline_ms / 1000
        # One connection is kept for requests that wait for a lock, unless it is the only one.
        self._lanes = max(1, settings.reserve_connections - 1)
        self._lag = Lag()
        self._gate = Gate(settings.reserve_wait_ms, self._lanes, self._lag)
        self._aside = asyncio.Semaphore(1)
        self._lock_seconds = settings.reserve_lock_ms / 1000
        self._waiting: deque[_PendingRequest] = deque()
        self._held: Counter[tuple[int, str]] = Counter()  # they wait for a lock
        self._tasks: set[asyncio.Task[None]] = set()
        self._in_flight = 0

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Measures the event loop's lag, because that is part of a request's wait."""
        self._lag.start()
        try:
            yield
        finally:
            self._lag.stop()

    @property
    def waiting(self) -> int:
        """How many requests wait for the next batch."""
        return len(self._waiting)

    def retry_after(self) -> int | None:
        """The seconds for Retry-After if a request would be refused now; else None."""
        return self._gate.retry_after(len(self._waiting) // self._size)

    async def reserve(self, request: UnitRequest) -> UnitAnswer:
        """Requests a unit."""
        self._gate.enter(len(self._waiting) // self._size)
        loop = asyncio.get_running_loop()
        pending = _PendingRequest(request, loop.create_future(), loop.time())
        if self._held and pending.customer in self._held:
            self._start(self._serve_aside(pending))
            return self._calls.unit_answer(await pending.row)
        self._waiting.append(pending)
        if self._in_flight < self._lanes:
            self._in_flight += 1
            self._start(self._drain())
        return self._calls.unit_answer(await pending.row)

    async def _drain(self) -> None:
        try:
            while batch := list(self._next()):
                await self._serve(batch)
        finally:
            self._in_flight -= 1

    def _next(self) -> Iterator[_PendingRequest]:
        """The requests of the next batch.

        A request that has waited for more than half of its deadline is refused, because the call
        needs the other half.
        """
        latest = asyncio.get_running_loop().time() - self._deadline_seconds / 2
        room = self._size
        while self._waiting and room:
            pending = self._waiting.popleft()
            if pending.at < latest:
                pending.tell(Overloaded())
            elif not pending.row.done():
                room -= 1
                yield pending

    async def _serve(self, batch: list[_PendingRequest]) -> None:
        loop = asyncio.get_running_loop()
        began, deadline = loop.time(), batch[0].at + self._deadline_seconds
        try:
            if len(batch) == 1:
                rows: Sequence[Any] = [await self._calls.reserve(batch[0].request, deadline)]
            else:
                requests = [pending.request for pending in batch]
                rows = await self._calls.reserve_many(requests, deadline)
            if len(rows) != len(batch):
                raise ValueError(f"{len(rows)} answers to {len(batch)} requests")
        except BaseException as error:
            apart = may_be_of_one_request(error) if len(batch) > 1 else is_held(error)
            for pending in batch:
                if apart:
                    self._start(self._serve_aside(pending))
                else:
                    pending.tell(error)
            if not isinstance(error, Exception):
                raise
        else:
            for pending, row in zip(batch, rows, strict=True):
                pending.tell(row)
        self._gate.called(loop.time() - began)

    async def _serve_aside(self, pending: _PendingRequest) -> None:
        """Sends one request, again while it meets a lock; only one is being sent at a time."""
        loop = asyncio.get_running_loop()
        latest = pending.at + self._deadline_seconds / 2
        pause_seconds = self._lock_seconds
        self._held[pending.customer] += 1
        try:
            while not pending.row.done():
                try:
                    async with self._aside:
                        if loop.time() > latest:
                            raise Overloaded
                        deadline = pending.at + self._deadline_seconds
                        pending.tell(await self._calls.reserve(pending.request, deadline))
                except Exception as error:
                    if not is_held(error) or loop.time() + pause_seconds > latest:
                        pending.tell(error)
                    else:
                        await asyncio.sleep(pause_seconds)
                        pause_seconds *= 2
        finally:
            self._held -= Counter([pending.customer])

    def _start(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)  # the loop itself keeps only a weak reference
        task.add_done_callback(self._tasks.discard)
