"""A queue of jobs: leases jobs, does them, and records their results in the database."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Set
from typing import ClassVar, TypeVar

import msgspec

from flashsale.database.jobs import Jobs, LeasedJob
from flashsale.database.sqlstates import is_passing
from flashsale.providers.interface import ProviderRefused
from flashsale.settings import Settings
from flashsale.worker.mail import MailRefused
from flashsale.worker.trouble import RETRY_MAX_SECONDS, Trouble, in_short, pause, unless_expected

log = logging.getLogger("flashsale.worker")

DOWN_AFTER_FAILURES = 10  # in a row; then the provider or mail server counts as down ...
PROBE_SECONDS = 1.0  # ... and one job at a time probes it, so that the others lose no tries
GATHER_SECONDS = 0.01  # for more calls to end, so that fewer statements take more jobs

T = TypeVar("T")
Acknowledge = Callable[[], Awaitable[bool]]
"""Tells the database what came of a job, and returns whether the job is done with that. May be
called again if the database was away."""


class Queue(ABC):
    """Leases only jobs that it does at once, so that a lease has to last for one call only."""

    name: ClassVar[str]

    def __init__(
        self, settings: Settings, jobs: Jobs, stop: asyncio.Event, *, at_once: int
    ) -> None:
        """at_once: how many jobs may be under way."""
        self.done = 0
        self.failures = 0
        self.under_way = 0
        self.full_takes = 0  # those that got as many jobs as they could have: there may be more
        self.jobs = jobs
        self._settings = settings
        self._stop = stop
        self._at_once = at_once
        self._failed_in_a_row = 0

    @property
    def is_down(self) -> bool:
        """Whether the other side counts as down."""
        return self._failed_in_a_row >= DOWN_AFTER_FAILURES

    @abstractmethod
    async def take(self, limit: int, lease_seconds: int) -> list[LeasedJob]:
        """Leases up to so many jobs."""

    @abstractmethod
    async def perform(self, job: LeasedJob) -> Acknowledge:
        """Does a job, without the database. Returns a function that records its result."""

    async def work(self) -> None:
        """Takes and does jobs until `stop` is set, then finishes those under way."""
        trouble = Trouble(f"taking {self.name}")
        running: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as group:
            while not self._stop.is_set():
                free = await self._free(running)
                if self._stop.is_set():
                    return
                limit = min(free, self._settings.job_batch)
                try:
                    jobs = await self.take(limit, self._settings.job_lease_seconds)
                except Exception as error:
                    await pause(self._stop, trouble.hit(error))
                    continue
                trouble.over()
                self.full_takes += len(jobs) == limit
                for job in jobs:
                    task = group.create_task(self._do(job))
                    running.add(task)
                    task.add_done_callback(running.discard)
                if not jobs:
                    await pause(self._stop, self._settings.job_poll_seconds)

    async def _free(self, running: Set[asyncio.Task[None]]) -> int:
        """Waits until jobs may start. Returns how many; while the other side is down, one."""
        if len(running) >= self._at_once:
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        if self._at_once - len(running) < self._at_once // 2:
            await asyncio.sleep(GATHER_SECONDS)
        if self.is_down:
            await pause(self._stop, PROBE_SECONDS)
            return 1
        return self._at_once - len(running)

    async def _do(self, job: LeasedJob) -> None:
        """Does one job, from its lease to its acknowledgement. It raises nothing."""
        lease_ends = asyncio.get_running_loop().time() + self._settings.job_lease_seconds
        try:
            try:
                acknowledge = await self._call(job)
            except Exception as error:
                self._note(error)
                await self._retry(job, error, lease_ends, unavailable=not _is_answer(error))
                return
            self._note(None)
            try:
                is_done = await insist(acknowledge, lease_ends)
            except Exception as error:
                if is_passing(error):
                    raise
                # The database refuses the result.
                await self._retry(job, error, lease_ends, unavailable=False)
                return
            self.done += 1
            if not is_done:
                log.info("%s", self._about(job, "lease lost, or order locked: done again"))
        except Exception as error:
            # The job itself is not at fault. When its lease ends, it is done again with its key.
            log.warning("%s", self._about(job, f"not acknowledged: {in_short(error)}"))

    async def _call(self, job: LeasedJob) -> Acknowledge:
        self.under_way += 1
        try:
            async with asyncio.timeout(self._settings.provider_timeout_seconds):
                return await self.perform(job)
        finally:
            self.under_way -= 1

    async def _retry(
        self, job: LeasedJob, error: Exception, lease_ends: float, *, unavailable: bool
    ) -> None:
        text = in_short(error)
        fate = await insist(lambda: self.jobs.retry(self.name, job, text, unavailable), lease_ends)
        log.log(
            logging.ERROR if fate == "dead" else logging.INFO,
            "%s",
            self._about(job, f"failed: fate={fate} error={text!r}"),
            exc_info=unless_expected(error),
        )

    def _note(self, error: Exception | None) -> None:
        """Counts failures of the other side in a row. A refusal is an answer and no failure."""
        if error is not None and not _is_answer(error):
            self.failures += 1
            self._failed_in_a_row += 1
            if self._failed_in_a_row == DOWN_AFTER_FAILURES:
                log.warning("%s: %d failures in a row, probing", self.name, DOWN_AFTER_FAILURES)
        else:
            if self.is_down:
                log.info("%s: works again", self.name)
            self._failed_in_a_row = 0

    def _about(self, job: LeasedJob, text: str) -> str:
        return f"{self.name} job {job.job_id}, try {job.tries}: {text}"


def _is_answer(error: Exception) -> bool:
    """Whether the other side works, although the job has failed."""
    return isinstance(error, ProviderRefused | MailRefused | msgspec.MsgspecError)


async def insist(tell: Callable[[], Awaitable[T]], lease_ends: float) -> T:
    """Records a result; while the database is away, tries again until the lease is over."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            return await tell()
        except Exception as error:
            if not is_passing(error) or loop.time() + RETRY_MAX_SECONDS > lease_ends:
                raise
            await asyncio.sleep(RETRY_MAX_SECONDS)
