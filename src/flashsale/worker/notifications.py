"""The queue of notifications: mails to customers."""

from __future__ import annotations

import asyncio
from functools import partial

import msgspec

from flashsale.database.jobs import Jobs, LeasedJob
from flashsale.settings import Settings
from flashsale.worker.mail import Notification, Sender, compose
from flashsale.worker.queue import Acknowledge, Queue
from flashsale.worker.results import Results


class NotificationQueue(Queue):
    """Sends mails."""

    name = "notifications"

    def __init__(self, settings: Settings, jobs: Jobs, stop: asyncio.Event, sender: Sender) -> None:
        """sender: what hands mails over."""
        super().__init__(settings, jobs, stop, at_once=settings.mail_concurrency)
        self._sender = sender
        self._sent = Results(jobs.finish_notifications)

    async def take(self, limit: int, lease_seconds: int) -> list[LeasedJob]:
        """Leases notifications."""
        return await self.jobs.take_notifications(limit, lease_seconds)

    async def perform(self, job: LeasedJob) -> Acknowledge:
        """Sends the mail. Errors: as of Sender; msgspec.ValidationError."""
        notification: Notification = msgspec.json.decode(job.columns["message"], type=Notification)
        await self._sender.send(compose(notification, job.job_id))
        return partial(self._sent.add, job.job_id, job)
