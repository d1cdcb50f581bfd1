"""Runs the worker: its queues and its sweeps, until it gets the signal to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from typing import Any

import asyncpg

from flashsale.database.jobs import DueItem, Jobs, Sweeps, has_swept, worker_role
from flashsale.plugins import plugged
from flashsale.providers.interface import PaymentProvider
from flashsale.settings import Settings
from flashsale.worker.events import EventDelivery
from flashsale.worker.mail import Sender
from flashsale.worker.notifications import NotificationQueue
from flashsale.worker.payments import PaymentQueue
from flashsale.worker.queue import Queue
from flashsale.worker.trouble import RETRY_MAX_SECONDS, Trouble, in_short, pause

log = logging.getLogger("flashsale.worker")

SWEEP_SECONDS = 0.5  # a sweep that takes longer begins anew, with what is due by then
SWEEP_HOLDS = 100_000  # overdue holds that a sweep lists, so that one item's can't hide another's
SWEEP_LIMIT = 1000  # orders per step and sweep, which the items share ...
ITEM_LIMIT = 100  # ... but at least so many per item: far inside the statement timeout
ALIVE_SECONDS = 60.0  # between log lines that say that the worker is alive


async def run(
    settings: Settings,
    provider: PaymentProvider | None = None,
    sender: Sender | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Works until `stop` is set; without one, until SIGTERM or SIGINT.

    Then it takes no more jobs, and has worker_stop_seconds to finish those under way. Those that it
    can't finish are done by another worker when their leases are over. It starts without the
    database. provider, sender: None takes those of the settings. Errors: SettingsError.
    """
    async with AsyncExitStack() as stack:
        if stop is None:
            stop = asyncio.Event()
            stack.enter_context(_set_by_signals(stop))
        paying = provider or await _plug_in(stack, settings, "provider", PaymentProvider)
        mailing = sender or await _plug_in(stack, settings, "sender", Sender)
        jobs = await stack.enter_async_context(Jobs(settings))
        queues: list[Queue | EventDelivery] = [
            PaymentQueue(settings, jobs, stop, paying),
            NotificationQueue(settings, jobs, stop, mailing),
        ]
        if settings.events_url:
            queues.append(EventDelivery(settings, jobs, stop, runner()))
        log.info("working: runner=%s database_role=%s", runner(), worker_role(settings))
        async with asyncio.TaskGroup() as group:
            works: dict[str, Callable[[], Awaitable[None]]] = {
                "sweep": partial(_sweep, settings, stop),
                "alive": partial(_say_alive, stop, queues),
                **{queue.name: queue.work for queue in queues},
            }
            loops = [
                group.create_task(_keep_going(name, work, stop), name=name)
                for name, work in works.items()
            ]
            await stop.wait()
            log.info("stopping: finishing what is under way")
            _, late = await asyncio.wait(loops, timeout=settings.worker_stop_seconds)
            for task in late:
                log.warning("stopping: gave up on %s", task.get_name())
                task.cancel()
    log.info("stopped")


async def _plug_in(stack: AsyncExitStack, settings: Settings, name: str, interface: Any) -> Any:
    return await stack.enter_async_context(plugged(settings, name, interface))


def runner() -> str:
    """The name of this process in sweep_status."""
    return f"{_machine()}{os.getpid()}"


async def healthy(settings: Settings) -> bool:
    """Whether a worker on this machine has swept lately, as the database saw it."""
    return await has_swept(settings, _machine())


async def _keep_going(name: str, work: Callable[[], Awaitable[None]], stop: asyncio.Event) -> None:
    """Works until `stop` is set, whatever happens: an error of ours must not end the worker."""
    this = asyncio.current_task()
    while not stop.is_set():
        try:
            await work()
        except (Exception, asyncio.CancelledError):
            if this is None or this.cancelling():
                raise
            log.exception("%s has failed, and begins again", name)
            await pause(stop, RETRY_MAX_SECONDS)


async def _sweep(settings: Settings, stop: asyncio.Event) -> None:
    """Sweeps at intervals, at once again if there is more to do, on a connection of its own."""
    loop = asyncio.get_running_loop()
    trouble = Trouble("sweep")
    items = _ItemTroubles()
    while not stop.is_set():
        try:
            async with Sweeps(settings, runner()) as sweeps:
                while not stop.is_set():
                    due = loop.time() + settings.sweep_interval_seconds
                    more = await _sweep_once(sweeps, items, stop)
                    trouble.over()
                    if not more:
                        await pause(stop, due - loop.time())
        except Exception as error:
            await pause(stop, trouble.hit(error))


async def _sweep_once(sweeps: Sweeps, items: _ItemTroubles, stop: asyncio.Event) -> bool:
    """Sweeps the items that are due, each in a transaction of its own, until the time is over.

    An item that has more to do comes again after the others. Returns whether there is more to do at
    once. An error at one item is logged and recorded, and the next item has its turn; only an error
    of the connection is raised. In pg_cron, flashsale.sweep_round does the same.
    """
    due = deque(await sweeps.begin(SWEEP_HOLDS))
    limit = max(ITEM_LIMIT, SWEEP_LIMIT // max(1, len(due)))
    more = sum(len(item.overdue_ids) for item in due) >= SWEEP_HOLDS
    loop = asyncio.get_running_loop()
    end = loop.time() + SWEEP_SECONDS
    while due and loop.time() < end and not stop.is_set():
        item = due.popleft()
        try:
            swept = await sweeps.sweep(item, limit)
        except (asyncpg.PostgresError, TimeoutError) as error:
            if not sweeps.connected:
                raise
            await sweeps.failed(item, in_short(error))
            items.failed(item.item_id, in_short(error))
            continue
        if swept.error is None:
            items.swept(item.item_id)
        else:
            items.failed(item.item_id, swept.error)
        if swept.more:
            due.append(DueItem(item.item_id, item.overdue_ids[limit:]))
    return await _publish(sweeps) or more or bool(due)


async def _publish(sweeps: Sweeps) -> bool:
    """Publishes what has happened. An error is logged, so that the sale goes on without the feed.

    Returns whether there is more to publish at once.
    """
    try:
        return await sweeps.publish()
    except (asyncpg.PostgresError, TimeoutError) as error:
        if not sweeps.connected:
            raise
        log.error("publishing events failed, the sweeps go on: error=%r", in_short(error))
        return False


class _ItemTroubles:
    """The items whose sweep fails: each is logged once, and again when it works."""

    def __init__(self) -> None:
        self._errors: dict[int, str] = {}

    def failed(self, item_id: int, error: str) -> None:
        """Notes a failure."""
        if self._errors.get(item_id) != error:
            log.error("sweeping item %d failed, the others go on: error=%r", item_id, error)
        self._errors[item_id] = error

    def swept(self, item_id: int) -> None:
        """Notes a success."""
        if self._errors.pop(item_id, None) is not None:
            log.info("sweeping item %d works again", item_id)


async def _say_alive(stop: asyncio.Event, queues: Sequence[Queue | EventDelivery]) -> None:
    while True:
        await pause(stop, ALIVE_SECONDS)
        if stop.is_set():
            return
        log.info("alive: %s", " ".join(f"{q.name}_done={q.done}" for q in queues))


def _machine() -> str:
    """The beginning of the names of this machine's runners."""
    return f"worker:{socket.gethostname()}:"


@contextmanager
def _set_by_signals(stop: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)
    for signum in signals:
        loop.add_signal_handler(signum, stop.set)
    try:
        yield
    finally:
        for signum in signals:
            loop.remove_signal_handler(signum)
