"""Requests for units that wait for their answer, and the calls of the database that answer them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from flashsale.models import UnitAnswer, UnitRequest


class UnitCalls(Protocol):
    """The calls that the intake makes. deadline: the event loop's time by which one must be back.

    The calls return rows unread, because the intake reads them only after the next batch has left.
    """

    async def reserve(self, request: UnitRequest, deadline: float) -> Any:
        """The row of one request, which is faster than reserve_many for a single one."""

    async def reserve_many(self, requests: Sequence[UnitRequest], deadline: float) -> Sequence[Any]:
        """The rows of several requests, in their order."""

    async def find_held(self, requests: Sequence[UnitRequest], deadline: float) -> Sequence[bool]:
        """Which of the requests would have to wait for another transaction, in their order."""

    def unit_answer(self, row: Any) -> UnitAnswer:
        """The answer that a row contains."""


class PendingRequest:
    """A request for a unit whose customer waits for the row."""

    __slots__ = ("alone", "at", "request", "row")

    def __init__(self, request: UnitRequest, loop: asyncio.AbstractEventLoop) -> None:
        """Comes now, by the loop's time."""
        self.request = request
        self.row: asyncio.Future[Any] = loop.create_future()
        self.at = loop.time()
        self.alone = False
        """Whether it must not share a call with others, because it made one fail."""

    def tell(self, row: Any) -> None:
        """Gives the row or an error to the waiting caller, unless the client has gone."""
        if self.row.done():
            return
        if isinstance(row, BaseException):
            self.row.set_exception(row)
        else:
            self.row.set_result(row)


async def call(calls: UnitCalls, batch: Sequence[PendingRequest], deadline: float) -> None:
    """Answers all of a batch by one call. Errors: what the call raises; nobody was told then."""
    if len(batch) == 1:
        rows: Sequence[Any] = [await calls.reserve(batch[0].request, deadline)]
    else:
        rows = await calls.reserve_many([pending.request for pending in batch], deadline)
    if len(rows) != len(batch):
        raise ValueError(f"{len(rows)} answers to {len(batch)} requests")
    for pending, row in zip(batch, rows, strict=True):
        pending.tell(row)
