"""The queue of notifications: mails to customers."""

from __future__ import annotations

import asyncio
from functools import partial

import msgspec

from flashsale.database.jobs import Jobs, LeasedJob
from flashsale.settings import Settings
from flashsale.worker.mail import Notification, Sender, compose
from flashsale.worker.queue import Acknowledge, Queue


class NotificationQueue(Queue):
    """Sends mails. All mails sent while an acknowledgement is under way share the next one."""

    name = "notifications"

    def __init__(self, settings: Settings, jobs: Jobs, stop: asyncio.Event, sender: Sender) -> None:
        """sender: what hands mails over."""
        super().__init__(settings, jobs, stop, at_once=settings.mail_concurrency)
        self._sender = sender
        self._finishing: asyncio.Task[None] | None = None
        self._sent: list[tuple[LeasedJob, asyncio.Future[bool]]] = []

    async def take(self, limit: int, lease_seconds: int) -> list[LeasedJob]:
        """Leases notifications."""
        return await self.jobs.take_notifications(limit, lease_seconds)

    async def perform(self, job: LeasedJob) -> Acknowledge:
        """Sends the mail. Errors: as of Sender; msgspec.ValidationError."""
        notification: Notification = msgspec.json.decode(job.columns["message"], type=Notification)
        await self._sender.send(compose(notification, job.job_id))
        return partial(self._acknowledge, job)

    async def _acknowledge(self, job: LeasedJob) -> bool:
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._sent.append((job, future))
        if self._finishing is None or self._finishing.done():
            self._finishing = asyncio.create_task(self._finish())
        return await future

    async def _finish(self) -> None:
        while self._sent:
            sent, self._sent = self._sent, []
            try:
                ours = await self.jobs.finish_notifications([job for job, _ in sent])
            except Exception as error:
                for _, future in sent:
                    if not future.done():
                        future.set_exception(error)
                continue
            for job, future in sent:
                if not future.done():
                    future.set_result(job.job_id in ours)
