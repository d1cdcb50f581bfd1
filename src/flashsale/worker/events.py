"""Delivers the feed of events to the receiver at events_url: in order, and each at least once.

One worker at a time delivers: it has a lease, which take_events gives to nobody else before it
ends. It makes one delivery after the other, and begins none that could last longer than its lease.
So two workers never deliver at once, and no event overtakes another one. What was delivered is
noted a few times per second; a worker that dies before that repeats what it had not noted. An event
that the receiver does not take is tried again after a pause, for as long as it takes, and all later
events wait for it. While the receiver is being called, no connection to the database and no lock is
held.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import msgspec

from flashsale import standard_webhooks
from flashsale.cursors import cursor_of
from flashsale.database.jobs import Jobs, LeasedEvent
from flashsale.http_client import HttpClient, NoAnswer
from flashsale.settings import Settings, without_query
from flashsale.worker.queue import insist
from flashsale.worker.trouble import NotDelivered, Trouble, in_short, pause, unless_expected

log = logging.getLogger("flashsale.worker")

BATCH = 100  # events that are read at once
NOTE_SECONDS = 0.2  # between notes of what was delivered, each of which is a commit
LEASE_RESERVE_SECONDS = 5  # of a lease, beyond the longest delivery


class Payload(msgspec.Struct, frozen=True):
    """The body of a delivery: the event as GET /events has it, but for the name of its time."""

    type: str
    timestamp: datetime
    event_id: str
    item_id: int
    order_id: str | None
    data: msgspec.Raw


class EventDelivery:
    """Delivers events for as long as `work` runs."""

    name = "events"

    def __init__(self, settings: Settings, jobs: Jobs, stop: asyncio.Event, worker: str) -> None:
        """worker: this process, as event_delivery shows it. Errors: SettingsError."""
        self.done = 0
        self.now = asyncio.get_running_loop().time
        self._settings = settings
        self._jobs = jobs
        self._stop = stop
        self._worker = worker
        self._keys = standard_webhooks.keys_of(settings.need_events_secret())
        self._timeout = settings.delivery_timeout_seconds
        self._lease_seconds = math.ceil(self._timeout) + LEASE_RESERVE_SECONDS
        parts = urlsplit(settings.events_url)
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._client = HttpClient(f"{parts.scheme}://{parts.netloc}", timeout_seconds=self._timeout)

    async def work(self) -> None:
        """Delivers until `stop` is set. It raises nothing."""
        log.info("delivering events to %s", without_query(self._settings.events_url))
        trouble = Trouble("delivering events")
        try:
            while not self._stop.is_set():
                try:
                    more = await self.deliver_some()
                except Exception as error:
                    await pause(self._stop, trouble.hit(error))
                    continue
                trouble.over()
                if not more:
                    await pause(self._stop, self._settings.job_poll_seconds)
        finally:
            self._client.close()

    async def deliver_some(self) -> bool:
        """Delivers the next events, if they are due and nobody else does. Returns whether it did.

        Errors: those of Jobs. What was not noted by then is delivered again.
        """
        lease = _Lease(self._jobs, self._lease_seconds, self.now)
        events = await self._jobs.take_events(self._worker, self._lease_seconds, BATCH)
        for event in events:
            if self._stop.is_set():
                break
            while lease.is_to_be_noted(self._timeout):
                if not await lease.note(event.lease_id):
                    return True  # staff have moved the cursor
            try:
                await self._post(event)
            except Exception as error:
                await self._put_off(lease, event, error)
                return False
            lease.delivered_id = event.event_id
            self.done += 1
            if event.failures and event is events[0]:
                log.info("delivering events works again")
        if events:
            await lease.note(events[0].lease_id, release=True)
        return bool(events)

    async def _post(self, event: LeasedEvent) -> None:
        """Makes a delivery. Errors: NotDelivered."""
        body = body_of(event)
        event_id = cursor_of(event.event_id)
        signed = standard_webhooks.headers(self._keys, event_id, int(time.time()), body)
        try:
            answer = await self._client.post(self._path, body, signed)
        except NoAnswer as error:
            raise NotDelivered(str(error)) from error
        if not 200 <= answer.status < 300:
            raise NotDelivered(f"status {answer.status}", answer.retry_after)

    async def _put_off(self, lease: _Lease, event: LeasedEvent, error: Exception) -> None:
        """Notes that an event was not taken, and when it is tried again."""
        failures = event.failures if lease.delivered_id is None else 0
        asked = error.retry_after if isinstance(error, NotDelivered) else None
        seconds = retry_seconds(self._settings, failures, asked)
        text = in_short(error)
        if failures == 0:
            log.warning(
                "event %d (%s) was not delivered, will keep trying: error=%r",
                event.event_id,
                cursor_of(event.event_id),
                text,
                exc_info=unless_expected(error),
            )
        if await lease.note(event.lease_id):
            await lease.put_off(event.lease_id, text, seconds)


class _Lease:
    """What this worker has delivered, and until when no other worker delivers."""

    def __init__(self, jobs: Jobs, seconds: int, now: Callable[[], float]) -> None:
        """To be made before the lease is taken: so it ends here no later than in the database."""
        self.delivered_id: int | None = None
        self._jobs = jobs
        self._seconds = seconds
        self._now = now
        self._noted_id: int | None = None
        self._noted_at = now()
        self._ends = self._noted_at + seconds

    def is_to_be_noted(self, seconds: float) -> bool:
        """Whether there is something to note, or the lease ends within so many seconds."""
        now = self._now()
        is_due = self.delivered_id != self._noted_id and now >= self._noted_at + NOTE_SECONDS
        return is_due or self._ends - now < seconds

    async def note(self, lease_id: int, *, release: bool = False) -> bool:
        """Notes what was delivered, and begins the lease anew or ends it. False: it has gone."""
        self._noted_at = self._now()
        ours = await insist(
            lambda: self._jobs.events_delivered(
                lease_id, self.delivered_id, 0 if release else self._seconds
            ),
            self._ends,
        )
        self._noted_id = self.delivered_id
        self._ends = self._noted_at + self._seconds
        return ours

    async def put_off(self, lease_id: int, error: str, seconds: float) -> None:
        """Notes a failure, and ends the lease."""
        await insist(lambda: self._jobs.event_failed(lease_id, error, seconds), self._ends)


def body_of(event: LeasedEvent) -> bytes:
    """The body of an event's deliveries."""
    return msgspec.json.encode(
        Payload(
            type=event.type,
            timestamp=event.at.astimezone(UTC),
            event_id=cursor_of(event.event_id),
            item_id=event.item_id,
            order_id=None if event.order_id is None else str(event.order_id),
            data=msgspec.Raw(event.data.encode()),
        )
    )


def retry_seconds(settings: Settings, failures: int, retry_after: str | None) -> float:
    """The pause after a failed delivery: twice as long each time, with a random part.

    failures: how many tries of this event have failed before. retry_after: the receiver's header;
    it makes the pause longer, up to the longest one that the settings allow, and never shorter.
    """
    longest = settings.delivery_backoff_max_seconds
    own = min(longest, settings.delivery_backoff_seconds * 2.0 ** min(failures, 40))
    return min(longest, max(own * random.uniform(0.5, 1), _asked_seconds(retry_after)))


def _asked_seconds(retry_after: str | None) -> float:
    """The seconds in a Retry-After header, which may be a number or a date; 0 if it is neither."""
    given = (retry_after or "").strip()
    if given.isascii() and given.isdecimal():
        return float(given[:9])
    try:
        return max(0.0, parsedate_to_datetime(given).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0
