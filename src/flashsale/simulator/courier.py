"""The courier: sends events to the webhook until they are accepted."""

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
PROBE_SECONDS = 1.0  # at most, between attempts while the webhook is down
# A webhook that refuses (4xx) probably has another secret or an older version, which somebody will
# fix. The event is about money, so it is still sent again, but less often.
REFUSED_BACKOFF_FACTOR = 10
# In place of an HTTP status: the answer broke off or took too long; no server accepts connections.
NO_ANSWER, NOBODY = 0, -1


class Courier:
    """Sends events to the webhook, each in its own task, until the answer is a 2xx."""

    def __init__(
        self,
        settings: Settings,
        dice: FaultDice,
        durable: Callable[[], Awaitable[None]],
        delivered: Callable[[ProviderEvent], None],
    ) -> None:
        """durable: returns when the ledger is on disk. delivered: called after a 2xx."""
        self._url = settings.webhook_url
        self._secret = settings.need_webhook_secret()
        self._backoff_seconds = settings.event_backoff_seconds
        self._backoff_max_seconds = settings.event_backoff_max_seconds
        self._dice = dice
        self._durable = durable
        self._delivered = delivered
        # Held while sending and not between attempts, so that an event that fails delays no other.
        self._slots = asyncio.Semaphore(DELIVERIES_AT_ONCE)
        self._listening = asyncio.Event()  # set unless the webhook is down
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
        """Sends until a 2xx. While the webhook is down, only one delivery tries to reach it."""
        probes = False
        for attempt in itertools.count(1):
            if not probes:
                await self._listening.wait()
            status = await self._post(event, probes)
            if probes and status != NOBODY:
                log.info("webhook is back")
                self._listening.set()
                probes = False
            if 200 <= status < 300:
                return
            if status == NOBODY and not probes:
                if not self._listening.is_set():
                    continue
                log.warning("nobody listens at the webhook, will keep trying: url=%s", self._url)
                self._listening.clear()
                probes = True
            wait = self._backoff(attempt, status)
            if not probes:
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
        # Only one event is held back at a time, because another event has to overtake it.
        if self._dice.strikes(faults.reorder_events) and self._held is None:
            overtaken = asyncio.Event()
            self._held = (event, overtaken)
            try:
                await asyncio.wait_for(overtaken.wait(), faults.delay_ms / 1000)
            except TimeoutError:
                pass
            finally:
                self._held = None

    async def _post(self, event: ProviderEvent, probes: bool) -> int:
        """The status of one attempt, signed as of now; or NO_ANSWER, or NOBODY."""
        body = msgspec.json.encode(event)
        async with self._slots:
            if not probes and not self._listening.is_set():
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
        """Seconds until the next attempt. They are random, so that events don't come in bursts."""
        wait = self._backoff_seconds * 2.0 ** min(attempt - 1, 20)
        if status == NOBODY:
            wait = min(wait, PROBE_SECONDS)
        elif 400 <= status < 500 and status not in (408, 425, 429):
            wait *= REFUSED_BACKOFF_FACTOR
        return min(wait, self._backoff_max_seconds) * random.uniform(0.75, 1.25)

    async def close(self) -> None:
        """Stops. Events that are not delivered yet are sent after the next start."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._client.close()
