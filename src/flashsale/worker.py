"""The worker: sweeps, and does what the verbs left in the queues.

All decisions are SQL's. Here is only what a database can't do itself: call the payment provider,
send mail, and knock regularly. Any number of workers may run: a job is leased to one of them, and
whoever is late is told so. No connection is held while somebody outside is being called.

`python -m flashsale.worker` tells by its exit status whether this machine's worker is alive.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from datetime import datetime
from typing import Any, ClassVar, NamedTuple

import asyncpg
import msgspec

from flashsale.gateway import (
    Captured,
    HttpProvider,
    PaymentProvider,
    ProviderRefused,
    ProviderUnavailable,
)
from flashsale.mail import LogSender, Notification, Sender, compose
from flashsale.settings import Settings

log = logging.getLogger("flashsale.worker")

CONNECTIONS = 4  # for jobs; the sweep has its own, so that no storm of jobs can starve it
SWEEP_LIMIT = 1000  # orders a step: sweeps are short, and far inside the statement timeout
DOWN_AFTER_FAILURES = 10  # in a row; then the other side is called down ...
PROBE_SECONDS = 1.0  # ... and one job at a time tries it, so that the others keep their tries
RETRY_SECONDS, RETRY_MAX_SECONDS = 0.1, 1.0  # between attempts to reach the database
ALIVE_SECONDS = 60.0  # between log lines that say so
ERROR_LENGTH = 500


class _Job(msgspec.Struct, frozen=True, tag_field="kind"):
    payment_id: int
    amount: int  # minor units of currency
    currency: str


class Open(_Job, frozen=True, tag="open"):
    """Open a session for a hold."""

    order_id: int
    expires_at: datetime


class Void(_Job, frozen=True, tag="void"):
    """The hold is over: close its session."""

    session_id: str


class Refund(_Job, frozen=True, tag="refund"):
    """Money came that could not be used: send it back."""

    session_id: str


PaymentJob = Open | Void | Refund


class Ack(NamedTuple):
    """What tells the database that a job is done: job_id and tries are its first arguments."""

    sql: str
    args: tuple[object, ...] = ()


SENT = Ack("select flashsale.finish_notifications(array[$1::bigint], array[$2::integer])")


async def run(
    settings: Settings,
    provider: PaymentProvider | None = None,
    sender: Sender | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Works until `stop` is set; without one, until SIGTERM or SIGINT.

    Then it takes nothing new, finishes what is under way within worker_stop_seconds, and leaves the
    rest to whoever gets it when its lease is over. Needs no database to start.
    """
    async with AsyncExitStack() as stack:
        if stop is None:
            stop = asyncio.Event()
            stack.enter_context(_set_by_signals(stop))
        if provider is None:
            provider = await stack.enter_async_context(
                HttpProvider(
                    settings.provider_url,
                    timeout_seconds=settings.provider_timeout_seconds,
                    connections=settings.job_concurrency,
                )
            )
        pool = await asyncpg.create_pool(
            **_connection_arguments(settings), min_size=0, max_size=CONNECTIONS, reset=_keep
        )
        stack.push_async_callback(_close, pool)
        queues: list[_Queue] = [
            _Payments(settings, pool, stop, provider),
            _Notifications(settings, pool, stop, sender or LogSender()),
        ]
        log.info("working: runner=%s database_role=%s", runner(), _role(settings))
        async with asyncio.TaskGroup() as group:
            loops = [
                group.create_task(_sweep(settings, stop), name="sweep"),
                group.create_task(_say_alive(stop, queues), name="alive"),
                *(group.create_task(queue.work(), name=queue.name) for queue in queues),
            ]
            await stop.wait()
            log.info("stopping: finishing what is under way")
            _, late = await asyncio.wait(loops, timeout=settings.worker_stop_seconds)
            for task in late:
                log.warning("stopping: gave up on %s", task.get_name())
                task.cancel()
    log.info("stopped")


def runner() -> str:
    """This process in sweep_status."""
    return f"{_machine()}:{os.getpid()}"


async def healthy(settings: Settings) -> bool:
    """Whether a worker on this machine has swept lately, as the database saw it."""
    connection = await asyncpg.connect(**_connection_arguments(settings))
    try:
        return bool(
            await connection.fetchval(
                "select exists (select from flashsale.sweep_status s "
                "where starts_with(s.runner, $1) and s.lag_seconds < $2)",
                f"{_machine()}:",
                settings.readiness_sweep_lag_seconds,
            )
        )
    finally:
        await connection.close(timeout=1)


async def _sweep(settings: Settings, stop: asyncio.Event) -> None:
    """Sweeps at an interval, at once again if there is more; on a connection of its own."""
    loop = asyncio.get_running_loop()
    trouble = _Trouble("sweep")
    while not stop.is_set():
        connection = None
        try:
            connection = await asyncpg.connect(**_connection_arguments(settings))
            while not stop.is_set():
                due = loop.time() + settings.sweep_interval_seconds
                more = await connection.fetchval(
                    "select more from flashsale.sweep($1, $2)", runner(), SWEEP_LIMIT
                )
                trouble.over()
                if not more:
                    await _pause(stop, due - loop.time())
            await connection.close(timeout=1)
        except Exception as error:
            await _pause(stop, trouble.hit(error))
        finally:
            if connection is not None:
                connection.terminate()


class _Queue:
    """Leases jobs and does each at once, so that a lease has to last for one call only."""

    name: ClassVar[str]
    take_sql: ClassVar[str]

    def __init__(self, settings: Settings, pool: Any, stop: asyncio.Event) -> None:
        self.done = 0
        self._settings = settings
        self._pool = pool
        self._stop = stop
        self._failed_in_a_row = 0

    def at_once(self, settings: Settings) -> int:
        """How many jobs may be under way."""
        return settings.job_concurrency

    async def perform(self, row: Any) -> Ack:
        """Does a job outside of the database; returns how to acknowledge it."""
        raise NotImplementedError

    async def acknowledge(self, row: Any, ack: Ack) -> Any:
        """Tells the database, once."""
        return await self._pool.fetchval(ack.sql, row["job_id"], row["tries"], *ack.args)

    async def work(self) -> None:
        s = self._settings
        trouble = _Trouble(f"taking {self.name}")
        running: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as group:
            while not self._stop.is_set():
                free = self.at_once(s) - len(running)
                down = self._failed_in_a_row >= DOWN_AFTER_FAILURES
                if down:
                    await _pause(self._stop, PROBE_SECONDS)
                    free = min(1, free)
                if self._stop.is_set():
                    return
                if free <= 0:
                    await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    continue
                try:
                    jobs = await self._pool.fetch(
                        self.take_sql, min(free, s.job_batch), s.job_lease_seconds
                    )
                except Exception as error:
                    await _pause(self._stop, trouble.hit(error))
                    continue
                trouble.over()
                for row in jobs:
                    task = group.create_task(self._do(row))
                    running.add(task)
                    task.add_done_callback(running.discard)
                if not jobs:
                    await _pause(self._stop, s.job_poll_seconds)

    async def _do(self, row: Any) -> None:
        """One job, from its lease to its acknowledgement; no error leaves this."""
        lease_ends = asyncio.get_running_loop().time() + self._settings.job_lease_seconds
        try:
            try:
                async with asyncio.timeout(self._settings.provider_timeout_seconds):
                    ack = await self.perform(row)
            except Exception as error:
                self._note(error)
                await self._retry(row, error, lease_ends)
                return
            self._note(None)
            try:
                outcome = await self._tell(row, ack, lease_ends)
            except Exception as error:
                if _is_passing(error):
                    raise
                await self._retry(row, error, lease_ends)  # the database refuses what we learnt
                return
            self.done += 1
            if outcome in (False, "lost_lease"):
                log.info("%s", self._about(row, "lease lost: somebody else has this job now"))
        except Exception as error:
            # Not a matter of this job: its lease runs out, and it is done again, with its key.
            log.warning("%s", self._about(row, f"not acknowledged: {_in_short(error)}"))

    async def _retry(self, row: Any, error: Exception, lease_ends: float) -> None:
        text = _in_short(error)
        ack = Ack("select flashsale.retry_job($3, $1, $2, $4)", (self.name, text))
        fate = await self._tell(row, ack, lease_ends)
        log.log(
            logging.ERROR if fate == "dead" else logging.INFO,
            "%s",
            self._about(row, f"failed: fate={fate} error={text!r}"),
            exc_info=None if _is_expected(error) else error,
        )

    async def _tell(self, row: Any, ack: Ack, lease_ends: float) -> Any:
        """Tells the database; while it is away, again and again until the lease is over."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                return await self.acknowledge(row, ack)
            except Exception as error:
                if not _is_passing(error) or loop.time() + RETRY_MAX_SECONDS > lease_ends:
                    raise
                await asyncio.sleep(RETRY_MAX_SECONDS)

    def _note(self, error: Exception | None) -> None:
        """Counts failures of the other side in a row; an answer that we don't like is none."""
        if error is not None and not isinstance(error, ProviderRefused | msgspec.MsgspecError):
            self._failed_in_a_row += 1
            if self._failed_in_a_row == DOWN_AFTER_FAILURES:
                log.warning("%s: %d failures in a row, probing", self.name, DOWN_AFTER_FAILURES)
        else:
            if self._failed_in_a_row >= DOWN_AFTER_FAILURES:
                log.info("%s: works again", self.name)
            self._failed_in_a_row = 0

    def _about(self, row: Any, text: str) -> str:
        return f"{self.name} job {row['job_id']}, try {row['tries']}: {text}"


class _Payments(_Queue):
    name = "payments"
    take_sql = "select * from flashsale.take_payment_jobs($1, $2)"

    def __init__(
        self, settings: Settings, pool: Any, stop: asyncio.Event, provider: PaymentProvider
    ) -> None:
        super().__init__(settings, pool, stop)
        self._provider = provider

    async def perform(self, row: Any) -> Ack:
        job: PaymentJob = msgspec.convert(dict(row), PaymentJob)
        name = str(job.payment_id)
        match job:
            case Open(payment_id, amount, currency, order_id, expires_at):
                session = await self._provider.open_session(
                    name, str(order_id), amount, currency, expires_at, f"payment-{name}-open"
                )
                return Ack(
                    "select flashsale.payment_opened($1, $2, $3, $4, $5)",
                    (payment_id, session.session_id, session.checkout_url),
                )
            case Void(payment_id, _, _, session_id):
                answer = await self._provider.void_session(session_id, f"payment-{name}-void")
                if isinstance(answer, Captured):
                    return Ack(
                        "select flashsale.payment_captured($1, $2, $3, $4, $5, $6)",
                        (payment_id, session_id, answer.amount, answer.currency),
                    )
                return Ack("select flashsale.payment_voided($1, $2, $3)", (payment_id,))
            case Refund(payment_id, amount, currency, session_id):
                await self._provider.refund_session(
                    session_id, amount, currency, f"payment-{name}-refund"
                )
                return Ack("select flashsale.payment_refunded($1, $2, $3)", (payment_id,))


class _Notifications(_Queue):
    name = "notifications"
    take_sql = "select * from flashsale.take_notifications($1, $2)"

    def __init__(self, settings: Settings, pool: Any, stop: asyncio.Event, sender: Sender) -> None:
        super().__init__(settings, pool, stop)
        self._sender = sender
        self._finishing: asyncio.Task[None] | None = None
        self._sent: dict[tuple[int, int], asyncio.Future[bool]] = {}

    def at_once(self, settings: Settings) -> int:
        return settings.mail_concurrency

    async def perform(self, row: Any) -> Ack:
        notification: Notification = msgspec.json.decode(row["message"], type=Notification)
        await self._sender.send(compose(notification, row["job_id"]))
        return SENT

    async def acknowledge(self, row: Any, ack: Ack) -> Any:
        """Mails that are sent while one call is under way gather for the next."""
        if ack is not SENT:
            return await super().acknowledge(row, ack)
        future = asyncio.get_running_loop().create_future()
        self._sent[row["job_id"], row["tries"]] = future
        if self._finishing is None or self._finishing.done():
            self._finishing = asyncio.create_task(self._finish())
        return await future

    async def _finish(self) -> None:
        while self._sent:
            sent, self._sent = self._sent, {}
            try:
                rows = await self._pool.fetch(
                    "select flashsale.finish_notifications($1, $2)",
                    [job_id for job_id, _ in sent],
                    [tries for _, tries in sent],
                )
            except Exception as error:
                for future in sent.values():
                    if not future.done():
                        future.set_exception(error)
                continue
            ours = {row[0] for row in rows}
            for (job_id, _), future in sent.items():
                if not future.done():
                    future.set_result(job_id in ours)


class _Trouble:
    """Something that keeps failing: each kind of failure is logged once, until it works again."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._known: set[str] = set()
        self._delay = RETRY_SECONDS

    def hit(self, error: Exception) -> float:
        """Notes a failure; returns the seconds to wait before the next attempt."""
        kind = f"{type(error).__name__} {getattr(error, 'sqlstate', '')}"
        if kind not in self._known:
            self._known.add(kind)
            log.warning(
                "%s failed, will keep trying: error=%r",
                self._what,
                _in_short(error),
                exc_info=None if _is_expected(error) else error,
            )
        delay, self._delay = self._delay, min(2 * self._delay, RETRY_MAX_SECONDS)
        return delay

    def over(self) -> None:
        if self._known:
            log.info("%s works again", self._what)
            self._known.clear()
            self._delay = RETRY_SECONDS


def _is_passing(error: Exception) -> bool:
    """Whether the database may answer the same call if asked again: away, busy, or a deadlock."""
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "")[:2] in ("08", "40", "53", "55", "57", "58")
    if isinstance(error, asyncpg.InterfaceError):
        return not isinstance(error, ValueError)  # an argument that its SQL type can't hold
    return isinstance(error, OSError | TimeoutError | asyncpg.InternalClientError)


def _is_expected(error: Exception) -> bool:
    """Whether its message says enough: it has a meaning to others, not only in our code."""
    known = ProviderUnavailable | ProviderRefused | asyncpg.PostgresError | OSError | TimeoutError
    return isinstance(error, known) or _is_passing(error)


def _in_short(error: Exception) -> str:
    """One line that Postgres can store; of unexpected errors the kind only, as they may quote."""
    text = type(error).__name__
    if _is_expected(error) and str(error):
        text = f"{text}: {error}"
    return "".join(c if c.isprintable() else " " for c in text)[:ERROR_LENGTH]


async def _say_alive(stop: asyncio.Event, queues: list[_Queue]) -> None:
    while True:
        await _pause(stop, ALIVE_SECONDS)
        if stop.is_set():
            return
        log.info("alive: %s", " ".join(f"{q.name}_done={q.done}" for q in queues))


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    """Sleeps, but not past the stop."""
    with suppress(TimeoutError):
        async with asyncio.timeout(max(0, seconds)):
            await stop.wait()


def _machine() -> str:
    return f"worker:{socket.gethostname()}"


def _role(settings: Settings) -> str:
    return settings.database_role or "flashsale_worker"


def _connection_arguments(settings: Settings) -> dict[str, Any]:
    options = {"application_name": "flashsale-worker"}
    if _role(settings) != "none":  # a pooler in between may take no other start-up parameters
        options["role"] = _role(settings)
    return {
        "dsn": settings.need_database_url(),
        "timeout": settings.acquire_timeout_seconds,
        "command_timeout": settings.statement_timeout_seconds,
        "statement_cache_size": settings.statement_cache_size,
        "server_settings": options,
    }


async def _keep(_connection: object) -> None:
    """A connection goes back to the pool as it is: no call of ours leaves anything behind."""


async def _close(pool: Any) -> None:
    try:
        async with asyncio.timeout(1):
            await pool.close()
    except TimeoutError:
        pool.terminate()


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


def _main() -> int:
    try:
        if asyncio.run(healthy(Settings.from_env())):
            return 0
        print("no worker on this machine has swept lately", file=sys.stderr)
    except Exception as error:
        print(_in_short(error), file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(_main())
