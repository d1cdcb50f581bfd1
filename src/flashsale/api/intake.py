"""The intake: it gathers concurrent requests for units, so that a batch is one database call.

While a batch is in flight, new requests wait. When it is back, all requests that have arrived
meanwhile leave as the next batch. So there is no timer: an idle service adds no delay, and batches
grow with the load. Tickets are given in the order of arrival.

A batch is one transaction, so one request that waits for a lock makes all of them wait. The lock
may be that of a duplicate request, which an internal tool holds in an open transaction. The batch's
connection therefore has a short lock_timeout. When it expires, nothing was written, and the
requests of the batch go on beside the batches (apart.py), as does from then on every request for
the item whose customer was held: then only customers of that item are delayed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager

from flashsale.api.apart import Apart
from flashsale.api.pending import PendingRequest, UnitCalls, call
from flashsale.database.admission import Gate, Lag
from flashsale.database.sqlstates import is_held, may_be_of_one_request
from flashsale.models import UnitAnswer, UnitRequest
from flashsale.refusals import Overloaded
from flashsale.settings import Settings


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
        self._apart = Apart(calls, settings)
        self._waiting: deque[PendingRequest] = deque()
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
        return len(self._waiting) + self._apart.waiting

    def retry_after(self) -> int | None:
        """The seconds for Retry-After if a request would be refused now; else None."""
        return self._gate.retry_after(len(self._waiting) // self._size)

    async def reserve(self, request: UnitRequest) -> UnitAnswer:
        """Requests a unit."""
        apart = self._apart.takes(request.item_id)
        self._gate.enter((self._apart.waiting if apart else len(self._waiting)) // self._size)
        pending = PendingRequest(request, asyncio.get_running_loop())
        if apart:
            self._apart.put(pending)
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

    def _next(self) -> Iterator[PendingRequest]:
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

    async def _serve(self, batch: list[PendingRequest]) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            await call(self._calls, batch, batch[0].at + self._deadline_seconds)
        except BaseException as error:
            apart = may_be_of_one_request(error) if len(batch) > 1 else is_held(error)
            for pending in batch:
                if apart:
                    self._apart.put(pending)
                else:
                    pending.tell(error)
            if not isinstance(error, Exception):
                raise
        self._gate.called(loop.time() - began)

    def _start(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)  # the loop itself keeps only a weak reference
        task.add_done_callback(self._tasks.discard)
