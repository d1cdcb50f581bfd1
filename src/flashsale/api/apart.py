"""The lane of requests that may meet a lock: beside the batches, so that those never wait for it.

Another transaction may be placing an order of the same customer, for example that of an internal
tool which has left it open. Such a customer is held until that transaction ends. Here all requests
for an item go of which a customer was held a moment ago, and the requests of a batch that failed.
So held customers cost other items nothing, however many there are of them.

Within an item, everybody is asked about first, by a call that takes no tickets (find_held). Those
who are free leave as a batch. Those who are held come again after a pause that grows, until half of
their deadline is over. One who made a call fail all the same comes again alone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator

from flashsale.api.pending import PendingRequest, UnitCalls, call
from flashsale.database.sqlstates import is_held, may_be_of_one_request
from flashsale.refusals import Overloaded
from flashsale.settings import Settings

REMEMBERED_SECONDS = 10.0  # how long an item's requests stay here after a customer was held
_HELD_AT_ONCE = 10  # asking about each takes 2 ms, for which the others of the round wait
_PAUSE_MAX_SECONDS = 0.5


class Apart:
    """Answers requests on one connection, those first that no lock holds."""

    def __init__(self, calls: UnitCalls, settings: Settings) -> None:
        """calls: the database."""
        self._calls = calls
        self._size = settings.batch_size
        self._deadline_seconds = settings.reserve_deadline_ms / 1000
        self._pause_seconds = settings.reserve_lock_ms / 1000
        self._new: deque[PendingRequest] = deque()
        self._again: deque[PendingRequest] = deque()
        self._pausing = 0
        self._remembered_until: dict[int, float] = {}
        self._work: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """How many requests wait for the next call."""
        return len(self._new)

    def takes(self, item_id: int) -> bool:
        """Whether requests for this item belong here."""
        if not self._remembered_until:
            return False
        until = self._remembered_until.get(item_id)
        if until is not None and until <= asyncio.get_running_loop().time():
            del self._remembered_until[item_id]
            until = None
        return until is not None

    def put(self, pending: PendingRequest) -> None:
        """Takes a request, and sees to its answer."""
        self._new.append(pending)
        self._start()

    def _start(self) -> None:
        if self._work is None:
            self._work = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        try:
            while self._new or self._again:
                if (batch := list(self._next())) and (free := await self._without_held(batch)):
                    await self._serve(free)
        finally:
            self._work = None

    def _next(self) -> Iterator[PendingRequest]:
        """The requests of the next round. Whoever has waited for too long is refused."""
        latest = asyncio.get_running_loop().time() - self._deadline_seconds / 2
        for queue, room in ((self._again, _HELD_AT_ONCE), (self._new, self._size - _HELD_AT_ONCE)):
            for _ in range(min(max(1, room), len(queue))):
                pending = queue.popleft()
                if pending.at < latest:
                    pending.tell(Overloaded())
                elif not pending.row.done():
                    yield pending

    async def _without_held(self, batch: list[PendingRequest]) -> list[PendingRequest]:
        """Those of the batch who need not wait for a lock; the others will come again."""
        try:
            requests = [pending.request for pending in batch]
            held = await self._calls.find_held(requests, self._deadline(batch))
        except BaseException as error:
            self._failed(batch, error)
            return batch
        for pending, has_to_wait in zip(batch, held, strict=True):
            if has_to_wait:
                self._hold(pending)
        return [pending for pending, waits in zip(batch, held, strict=True) if not waits]

    async def _serve(self, free: list[PendingRequest]) -> None:
        """Answers those who made no call fail in one call, and then the others one by one."""
        await self._try([pending for pending in free if not pending.alone])
        for pending in free:
            if pending.alone:
                await self._try([pending])

    async def _try(self, batch: list[PendingRequest]) -> None:
        batch = [pending for pending in batch if not pending.row.done()]
        if not batch:
            return
        try:
            await call(self._calls, batch, self._deadline(batch))
        except BaseException as error:
            if len(batch) == 1 and is_held(error):
                batch[0].alone = True
                self._hold(batch[0])
            else:
                self._failed(batch, error)

    def _failed(self, batch: list[PendingRequest], error: BaseException) -> None:
        """If one of the requests may have made the call fail, each of them is to be tried alone."""
        apart = len(batch) > 1 and may_be_of_one_request(error)
        for pending in batch:
            if apart:
                pending.alone = True
            else:
                pending.tell(error)
        if not isinstance(error, Exception):
            raise error

    def _hold(self, pending: PendingRequest) -> None:
        """Lets a held customer come again after a pause, as long as there is time for it."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._remembered_until[pending.request.item_id] = now + REMEMBERED_SECONDS
        pause_seconds = min(max(self._pause_seconds, now - pending.at), _PAUSE_MAX_SECONDS)
        if (
            self._pausing >= self._size
            or now + pause_seconds > pending.at + self._deadline_seconds / 2
        ):
            pending.tell(Overloaded())
            return
        self._pausing += 1
        loop.call_later(pause_seconds, self._come_again, pending)

    def _come_again(self, pending: PendingRequest) -> None:
        self._pausing -= 1
        self._again.append(pending)
        self._start()

    def _deadline(self, batch: list[PendingRequest]) -> float:
        return min(pending.at for pending in batch) + self._deadline_seconds
