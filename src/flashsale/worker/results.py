"""Results of jobs, recorded together: an outage leaves thousands of jobs, and one commit each."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence, Set
from typing import Generic, NamedTuple, TypeVar

from flashsale.database.sqlstates import is_passing

R = TypeVar("R")


class _Waiting(NamedTuple, Generic[R]):
    job_id: int
    result: R
    recorded: asyncio.Future[bool]


class Results(Generic[R]):
    """Records results. All that come while a call is under way share the next one."""

    def __init__(self, record: Callable[[Sequence[R]], Awaitable[Set[int]]]) -> None:
        """record: records results, and returns the job_ids that are done with that."""
        self._record = record
        self._waiting: list[_Waiting[R]] = []
        self._recording: asyncio.Task[None] | None = None

    async def add(self, job_id: int, result: R) -> bool:
        """Records the result of a job. Returns whether it is done. Errors: those of `record`."""
        recorded: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(job_id, result, recorded))
        if self._recording is None or self._recording.done():
            self._recording = asyncio.create_task(self._record_all())
        return await recorded

    async def _record_all(self) -> None:
        while self._waiting:
            results, self._waiting = self._waiting, []
            try:
                await self._record_these(results)
            except Exception as error:
                if is_passing(error):
                    _fail(results, error)
                else:  # it refuses one of them, which must not take the others along
                    await self._record_each(results)

    async def _record_each(self, results: list[_Waiting[R]]) -> None:
        for result in results:
            try:
                await self._record_these([result])
            except Exception as error:
                _fail([result], error)

    async def _record_these(self, results: list[_Waiting[R]]) -> None:
        done = await self._record([result.result for result in results])
        for result in results:
            if not result.recorded.done():  # it is if its job was cancelled
                result.recorded.set_result(result.job_id in done)


def _fail(results: list[_Waiting[R]], error: Exception) -> None:
    for result in results:
        if not result.recorded.done():
            result.recorded.set_exception(error)
