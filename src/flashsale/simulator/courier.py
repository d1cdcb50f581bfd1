"""The courier: brings events to the webhook until they are taken."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec

from flashsale import signature
from flashsale.http_client import HttpClient, NoAnswer, NobodyListens
from flashsale.settings import Settings, SettingsError
from flashsale.simulator.faults import FaultDice
from flashsale.simulator.ledger import LedgerError
from flashsale.simulator.messages import ProviderEvent

log = logging.getLogger("flashsale.provider")

DELIVERIES_AT_ONCE = 32
KNOCK_SECONDS = 1.0  # at most, between attempts to find somebody listening at the webhook
# A webhook that refuses (4xx) most likely has another secret, or is an older version. Somebody will
# mend that, and the event is about money: so it is sent again, but less often.
REFUSED_BACKOFF_FACTOR = 10
# In place of a status: the answer broke off or took too long; nobody listens at the webhook.
NO_ANSWER, NOBODY = 0, -1


class Courier:
    """Brings events to the webhook: each in a task of its own, again and again until a 2xx."""

    def __init__(
        self,
        settings: Settings,
        dice: FaultDice,
        durable: Callable[[], Awaitable[None]],
        delivered: Callable[[ProviderEvent], None],
    ) -> None:
        """durable: returns when what events tell of is on disk. delivered: called after a 2xx."""
        self._url = settings.webhook_url
        self._secret = settings.need_webhook_secret()
        self._backoff_seconds = settings.event_backoff_seconds
        self._backoff_max_seconds = settings.event_backoff_max_seconds
        self._dice = dice
        self._durable = durable
        self._delivered = delivered
        # Held while sending, not between attempts: an event that fails delays no other.
        self._slots = asyncio.Semaphore(DELIVERIES_AT_ONCE)
        self._listening = asyncio.Event()  # set while somebody does, as far as we know
        self._listening.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._held: tuple[ProviderEvent, asyncio.Event] | None = None
        try:
            self._client = HttpClient(
                settings.webhook_url, timeout_seconds=settings.event_timeout_seconds
            )
        except ValueError as error:
            raise SettingsError(f"FLASHSALE_WEBHOOK_URL: {error}") from error

    def send(self, event: ProviderEvent) -> None:
        """Delivers the event in the background; the faults in force may duplicate or delay it."""
        self._start(self._deliver(event))
        if self._dice.strikes(self._dice.faults.duplicate_events):
            self._start(self._deliver(event))

    def _start(self, delivery: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(delivery)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, event: ProviderEvent) -> None:
        try:
            await self._durable()
            await self._dawdle(event)
            await self._insist(event)
            if self._held and self._held[0].event_id != event.event_id:
                self._held[1].set()
            self._delivered(event)
            await self._durable()
        except LedgerError as error:
            log.error("event kept back: event=%s error=%s", event.event_id, error)

    async def _insist(self, event: ProviderEvent) -> None:
        """Sends until a 2xx. While nobody listens at all, one delivery knocks for everybody."""
        knocks = False
        for attempt in itertools.count(1):
            if not knocks:
                await self._listening.wait()
            status = await self._post(event, knocks)
            if knocks and status != NOBODY:
                log.info("webhook is back")
                self._listening.set()
                knocks = False
            if 200 <= status < 300:
                return
            if status == NOBODY and not knocks:
                if not self._listening.is_set():
                    continue
                log.warning("nobody listens at the webhook, will keep trying: url=%s", self._url)
                self._listening.clear()
                knocks = True
            wait = self._backoff(attempt, status)
            if not knocks:
                log.warning(
                    "event not delivered: event=%s type=%s attempt=%d status=%s again_in=%.1fs",
                    event.event_id,
                    event.type,
                    attempt,
                    status or "no answer",
                    wait,
                )
            await asyncio.sleep(wait)

    async def _dawdle(self, event: ProviderEvent) -> None:
        faults = self._dice.faults
        if self._dice.strikes(faults.delay_events):
            await asyncio.sleep(faults.delay_ms / 1000)
        # Only one event is held back at a time: there has to be another that overtakes it.
        if self._dice.strikes(faults.reorder_events) and self._held is None:
            overtaken = asyncio.Event()
            self._held = (event, overtaken)
            try:
                await asyncio.wait_for(overtaken.wait(), faults.delay_ms / 1000)
            except TimeoutError:
                pass
            finally:
                self._held = None

    async def _post(self, event: ProviderEvent, knocks: bool) -> int:
        """The status of one attempt, signed as of now; or NO_ANSWER, or NOBODY."""
        body = msgspec.json.encode(event)
        async with self._slots:
            if not knocks and not self._listening.is_set():
                return NOBODY
            signed = signature.sign(self._secret, body, int(time.time()))
            try:
                answer = await self._client.post("", body, {signature.HEADER: signed})
            except NobodyListens:
                return NOBODY
            except NoAnswer:
                return NO_ANSWER
        return answer.status

    def _backoff(self, attempt: int, status: int) -> float:
        """Seconds until the next attempt; scattered, so that a crowd does not come back at once."""
        wait = self._backoff_seconds * 2.0 ** min(attempt - 1, 20)
        if status == NOBODY:
            wait = min(wait, KNOCK_SECONDS)
        elif 400 <= status < 500 and status not in (408, 425, 429):
            wait *= REFUSED_BACKOFF_FACTOR
        return min(wait, self._backoff_max_seconds) * random.uniform(0.75, 1.25)

    async def close(self) -> None:
        """Stops; what is not delivered is sent after the next start."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._client.close()
