"""The worker does the jobs: sessions are opened, voided and refunded, and customers are told."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import psycopg
import pytest
from psycopg.types.json import Jsonb

from flashsale.database.jobs import Jobs, LeasedJob
from flashsale.dev.postgres import EmbeddedPostgres
from flashsale.providers.interface import (
    CheckoutSession,
    PaymentEvent,
    ProviderRefused,
    ProviderUnavailable,
    SessionCaptured,
    SessionRefunded,
    SessionVoided,
)
from flashsale.settings import Settings
from flashsale.testing.clock import Clock
from flashsale.testing.processes import environment
from flashsale.worker import payments, trouble
from flashsale.worker import queue as worker_queue
from flashsale.worker import run as worker
from flashsale.worker.mail import Mail
from flashsale.worker.notifications import NotificationQueue
from flashsale.worker.payments import PaymentQueue
from flashsale.worker.results import Results
from simulator_support import staged
from support import Connection, call, connect, item, many, pay, reserve, rows, status, value

T = TypeVar("T")


class FakeProvider:
    """Does each call once per key. `fault` may raise or wait before the effect, `late` after it."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.sessions: dict[str, CheckoutSession] = {}
        self.captured: dict[str, SessionCaptured] = {}
        self.done: Counter[str] = Counter()
        self.under_way = 0
        self.fault: Callable[[str], Any] = nothing
        self.late: Callable[[str], Any] = nothing

    async def open_session(
        self,
        payment_id: str,
        order_id: str,
        amount: int,
        currency: str,
        expires_at: datetime,
        description: str | None,
        idempotency_key: str,
    ) -> CheckoutSession:
        def effect() -> CheckoutSession:
            name = f"s{payment_id}"
            return self.sessions.setdefault(
                idempotency_key, CheckoutSession(name, f"http://pay/{name}")
            )

        return await self._serve(idempotency_key, effect)

    async def void_session(
        self, session_id: str, idempotency_key: str
    ) -> SessionVoided | SessionCaptured:
        def effect() -> SessionVoided | SessionCaptured:
            return self.captured.get(session_id) or SessionVoided()

        return await self._serve(idempotency_key, effect)

    async def refund_session(
        self, session_id: str, amount: int, currency: str, idempotency_key: str
    ) -> SessionRefunded:
        return await self._serve(idempotency_key, SessionRefunded)

    async def read_event(self, headers: Mapping[str, str], body: bytes) -> PaymentEvent:
        raise NotImplementedError("a worker reads no events")

    async def _serve(self, key: str, effect: Callable[[], T]) -> T:
        self.calls.append(key)
        self.under_way += 1
        try:
            await self.fault(key)
            answer = effect()
            self.done[key] += 1
            await self.late(key)
            return answer
        finally:
            self.under_way -= 1


async def nothing(_: str) -> None:
    pass


def assert_each_call_was_needed(
    provider: FakeProvider, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each call was made once, this one too, but for jobs that were put off after their call.

    That happens if a sweep has locked the order just then. The job is done again with its key.
    """
    put_off = sum("order locked: done again" in r.getMessage() for r in caplog.records)
    assert provider.done[key] > 0
    assert provider.done.total() == len(provider.done) + put_off


class Box:
    """A sender that keeps what it sent; it fails while `failing`."""

    def __init__(self) -> None:
        self.mails: list[Mail] = []
        self.failing = False

    async def send(self, mail: Mail) -> None:
        if self.failing:
            raise OSError("no mail server")
        self.mails.append(mail)

    @property
    def subjects(self) -> list[tuple[str, str]]:
        return [(m.to, m.subject) for m in self.mails]


class Door:
    """A fault that holds calls back until it is opened."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.waiting = 0

    async def __call__(self, _: str) -> None:
        self.waiting += 1
        await self.opened.wait()


def settings(url: str, **changes: Any) -> Settings:
    fast = {"job_poll_seconds": 0.02, "sweep_interval_seconds": 0.05, "worker_stop_seconds": 5.0}
    return Settings(database_url=url, **(fast | changes))


@asynccontextmanager
async def working(
    url: str, provider: Any = None, sender: Any = None, **changes: Any
) -> AsyncIterator[asyncio.Task[None]]:
    """Runs a worker. At the end it is stopped, which must not take long."""
    stop = asyncio.Event()
    task = asyncio.create_task(
        worker.run(settings(url, **changes), provider or FakeProvider(), sender or Box(), stop)
    )
    try:
        yield task
    finally:
        stop.set()
        if not task.cancelled():
            async with asyncio.timeout(10):
                await asyncio.gather(task, return_exceptions=task.cancelling() > 0)


async def until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    """Like support.eventually, but lets the worker work."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {condition}"
        await asyncio.sleep(0.005)
    return result


def depth(db: Connection, queue: str = "payments") -> int:
    return int(value(db, "select depth from flashsale.queue_status where queue = %s", queue))


def sweeps(db: Connection) -> int:
    return int(value(db, "select coalesce(sum(sweeps), 0) from flashsale.sweep_status"))


def idle(db: Connection) -> bool:
    return depth(db) + depth(db, "notifications") == 0


def end_leases(db: Connection) -> None:
    db.execute("update pgmq.q_payments set vt = clock_timestamp()")


def end_pauses(db: Connection) -> None:
    """Jobs that open a session of a hold, and have failed, are tried again at once.

    They pause for 2 s at most. Those that are being done keep their leases: a lease that has ended
    counts as a try, and a slow machine would use up all ten.
    """
    db.execute(
        "update pgmq.q_payments set vt = clock_timestamp() "
        "where vt < clock_timestamp() + interval '5 seconds'"
    )


def session_of(db: Connection, order: Any) -> str:
    return str(status(db, order.order_id).checkout_url).rsplit("/", 1)[1]


def payment(db: Connection, order: Any) -> str:
    return str(status(db, order.order_id).payment_status)


# The life of an order


async def test_the_provider_is_told_what_is_paid_for() -> None:
    """A database of an older release does not tell the item's name."""
    provider: Any = FakeProvider()
    told: list[tuple[Any, ...]] = []

    async def open_session(*given: Any) -> CheckoutSession:
        told.append(given)
        return CheckoutSession("s1", "http://pay/s1")

    provider.open_session = open_session
    nowhere = settings("postgresql://nowhere")
    queue = PaymentQueue(nowhere, Jobs(nowhere), asyncio.Event(), provider)
    at = datetime(2030, 1, 1, tzinfo=UTC)
    columns = {"kind": "open", "payment_id": 7, "order_id": 8, "amount": 1000, "currency": "EUR"}
    columns |= {"expires_at": at, "session_id": None}
    await queue.perform(LeasedJob(1, 1, columns | {"item_name": "Shoe"}))
    await queue.perform(LeasedJob(1, 1, columns))
    assert told == [("7", "8", 1000, "EUR", at, name, "payment-7-open") for name in ("Shoe", None)]


async def test_orders_that_a_tool_has_locked_keep_no_other_customer_from_a_checkout(
    db: Connection, database_url: str
) -> None:
    """The tool cancels more orders than the worker has connections, in an open transaction.

    Their sessions are open at the provider by then, so the worker wants to record them.
    """
    shoe = item(db, stock=50)
    provider, door = FakeProvider(), Door()
    held = many(db, shoe, [f"held {n}" for n in range(8)])
    with connect(database_url, autocommit=False) as tool:
        provider.late = door
        async with working(database_url, provider):
            await until(lambda: door.waiting == 8)
            for order in held:
                call(tool, "cancel", order.order_id)
            provider.late = nothing
            door.opened.set()
            for n in range(20):
                order = reserve(db, shoe, f"free {n}")
                await until(partial(is_open, db, order))
            shown = [is_open(db, order) for order in held]
            assert not any(shown)
            tool.rollback()
            for order in held:
                await until(partial(is_open, db, order))
    assert max(provider.done.values()) <= 3, "to put a job off is not to repeat it all the time"


def is_open(db: Connection, order: Any) -> bool:
    return bool(status(db, order.order_id).payment_status == "open")


async def test_a_hold_gets_its_session_and_the_customer_an_e_mail(
    database_url: str, db: Connection
) -> None:
    order = reserve(db, item(db), "ann")
    provider, box = FakeProvider(), Box()
    async with working(database_url, provider, box):
        await until(lambda: box.mails)
        await until(lambda: idle(db))
    assert status(db, order.order_id).checkout_url == f"http://pay/s{order.payment_id}"
    assert provider.calls == [f"payment-{order.payment_id}-open"]
    assert box.subjects == [("ann", "Shoe: reserved for you")]
    assert f"http://pay/s{order.payment_id}" in box.mails[0].text


async def test_a_key_that_was_used_before_a_restore_is_no_dead_end(
    database_url: str, db: Connection
) -> None:
    """Each first key of this payment was used for another call, which the database has lost."""
    order = reserve(db, item(db), "ann")
    first_keys = [f"payment-{order.payment_id}-{verb}" for verb in ("open", "void", "refund")]

    async def used(key: str) -> None:
        if key in first_keys:
            raise ProviderRefused("idempotency_key_reused", "")

    provider = FakeProvider()
    provider.fault = used
    async with working(database_url, provider):
        await until(lambda: payment(db, order) == "open")
        call(db, "cancel", order.order_id, "ann")
        await until(lambda: payment(db, order) == "voided")
        pay(db, order)
        await until(lambda: payment(db, order) == "refunded")
        await until(lambda: idle(db))
    session = f"s{order.payment_id}"
    keys = [f"{first_keys[0]}-{order.expires_at.astimezone(UTC):%Y%m%dT%H%M%S.%f}"]
    keys += [f"{key}-{session}" for key in first_keys[1:]]
    # A job that has met a sweep's lock on the order is done again, with its keys.
    calls = list(dict.fromkeys(provider.calls))
    assert calls == [key for pair in zip(first_keys, keys, strict=True) for key in pair]


async def test_a_cancelled_hold_is_voided_and_the_next_in_line_is_served(
    database_url: str, db: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "flashsale.worker")
    shoe = item(db)
    ann, bob = many(db, shoe, ["ann", "bob"])
    provider, box = FakeProvider(), Box()
    async with working(database_url, provider, box):
        await until(lambda: payment(db, ann) == "open")
        call(db, "cancel", ann.order_id)
        await until(lambda: status(db, bob.order_id).checkout_url)
        await until(lambda: payment(db, ann) == "voided")
        await until(lambda: idle(db))
    assert_each_call_was_needed(provider, f"payment-{ann.payment_id}-void", caplog)
    assert ("bob", "Shoe: it is your turn") in box.subjects


async def test_money_that_came_before_the_void_is_refunded_once(
    database_url: str, db: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "flashsale.worker")
    order = reserve(db, item(db), "ann")
    provider, box = FakeProvider(), Box()
    async with working(database_url, provider, box):
        await until(lambda: payment(db, order) == "open")
        provider.captured[f"s{order.payment_id}"] = SessionCaptured(1000, "EUR")
        call(db, "cancel", order.order_id)
        await until(lambda: payment(db, order) == "refunded")
        await until(lambda: idle(db))
    assert_each_call_was_needed(provider, f"payment-{order.payment_id}-refund", caplog)
    assert ("ann", "Shoe: your money is on its way back") in box.subjects


async def test_stray_money_goes_back(database_url: str, db: Connection) -> None:
    value(
        db,
        "select flashsale.record_payment_event("
        "'e1', 'payment.succeeded', 'x', '99', 5, 'EUR', now())",
    )
    provider = FakeProvider()
    async with working(database_url, provider):
        await until(lambda: value(db, "select status from flashsale.stray_payment") == "refunded")
    assert [key.rsplit("-", 1)[1] for key in provider.calls] == ["refund"]


async def test_the_next_customer_can_pay_within_a_second_of_the_expiry(
    database_url: str, tmp_path: Path, db: Connection
) -> None:
    """With the real provider and the settings that the service has."""
    stop = asyncio.Event()
    async with staged(tmp_path) as stage:
        await stage.start()
        s = Settings(database_url=database_url, provider_url=stage.url)
        task = asyncio.create_task(worker.run(s, stop=stop))
        await until(lambda: rows(db, "select * from flashsale.sweep_status"))

        async def expire_and_serve_the_next(sku: str) -> timedelta:
            ann, bob = many(db, item(db, sku, hold_seconds=1), ["ann", "bob"])
            await until(lambda: payment(db, ann) == "open")
            await until(lambda: status(db, bob.order_id).checkout_url)
            waited: timedelta = value(db, "select clock_timestamp()") - ann.expires_at
            await until(lambda: payment(db, ann) == "voided")
            return waited

        # The promise is for a machine without other load, so one success is enough.
        waits = [await expire_and_serve_the_next(f"shoe {attempt}") for attempt in range(3)]
        assert timedelta() < min(waits) < timedelta(seconds=1)
        stop.set()
        await task


async def test_the_real_provider_on_a_bad_day_neither_loses_nor_doubles_money(
    database_url: str, tmp_path: Path, db: Connection
) -> None:
    """The provider's events are lost: the answers to the worker's calls must be enough."""
    async with staged(tmp_path) as stage:
        await stage.start({"fail": 0.2, "lose_replies": 0.2, "seed": 1})
        s = settings(database_url, provider_url=stage.url)
        stop = asyncio.Event()
        task = asyncio.create_task(worker.run(s, stop=stop))

        def all_are(*wanted: str) -> bool:
            return all(payment(db, order) in wanted for order in orders)

        def are_open() -> bool:
            end_pauses(db)
            return all_are("open")

        def are_over() -> bool:
            end_leases(db)
            return all_are("voided", "refunded")

        def is_drained() -> bool:
            end_leases(db)
            return depth(db) == 0

        orders = many(db, item(db, stock=20), [f"c{n}" for n in range(20)])
        await until(are_open)
        for order in orders[:8]:
            await stage.complete({"session_id": session_of(db, order)})
        for order in orders:
            call(db, "cancel", order.order_id)
        await until(are_over)
        # A job whose reply was lost comes again, after a pause that grew with each ended lease.
        await until(is_drained)
        stop.set()
        await task
        totals = await stage.totals()
    assert [payment(db, o) for o in orders] == 8 * ["refunded"] + 12 * ["voided"]
    counts = {k: totals[k] for k in ("sessions", "open", "captured", "refunded", "voided")}
    assert counts == {"sessions": 20, "open": 0, "captured": 8, "refunded": 8, "voided": 12}


# Faults


async def test_a_provider_that_hangs_is_asked_again(database_url: str, db: Connection) -> None:
    order = reserve(db, item(db), "ann")
    provider = FakeProvider()

    async def hang_once(key: str) -> None:
        if provider.calls.count(key) == 1:
            await asyncio.Event().wait()

    provider.fault = hang_once
    async with working(database_url, provider, provider_timeout_seconds=0.1):
        await until(lambda: payment(db, order) == "open")
    assert len(provider.calls) == 2
    assert len(set(provider.calls)) == 1  # the same key


async def test_a_reply_that_is_lost_leaves_one_session(database_url: str, db: Connection) -> None:
    order = reserve(db, item(db), "ann")
    provider = FakeProvider()

    async def lose_once(key: str) -> None:
        if provider.calls.count(key) == 1:
            raise ProviderUnavailable("lost")

    provider.late = lose_once
    async with working(database_url, provider):
        await until(lambda: payment(db, order) == "open")
    assert len(provider.sessions) == 1


async def test_a_worker_that_dies_after_the_call_leaves_the_job_to_another(
    database_url: str, db: Connection
) -> None:
    order = reserve(db, item(db), "ann")
    provider, box = FakeProvider(), Box()
    provider.late = door = Door()
    async with working(database_url, provider, box) as first:
        await until(lambda: door.waiting)
        first.cancel()
    assert depth(db) == 1
    provider.late = nothing
    async with working(database_url, provider, box):
        end_leases(db)
        await until(lambda: payment(db, order) == "open")
        await until(lambda: idle(db))
    assert provider.done[f"payment-{order.payment_id}-open"] == 2
    assert len(provider.sessions) == 1
    assert box.subjects == [("ann", "Shoe: reserved for you")]


async def test_a_job_whose_lease_has_run_out_is_taken_again(
    database_url: str, db: Connection
) -> None:
    order = reserve(db, item(db), "ann")
    rows(db, "select * from flashsale.take_payment_jobs(1, 1)")  # and the worker dies
    async with working(database_url):
        await until(lambda: payment(db, order) == "open")


async def test_a_late_worker_does_not_acknowledge_another_workers_lease(
    database_url: str, db: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "flashsale.worker")
    order = reserve(db, item(db), "ann")
    slow, fast, box = FakeProvider(), FakeProvider(), Box()
    slow.late, fast.late = slowly, fastly = Door(), Door()
    async with working(database_url, slow, box, job_concurrency=1):
        await until(lambda: slowly.waiting)
        end_leases(db)
        async with working(database_url, fast, box):
            await until(lambda: fastly.waiting)
            slowly.opened.set()
            await until(lambda: "lease lost" in caplog.text)
            assert payment(db, order) == "open"  # its result is kept
            assert depth(db) == 1  # but the job belongs to the other worker
            fastly.opened.set()
            await until(lambda: idle(db))
    assert box.subjects == [("ann", "Shoe: reserved for you")]
    assert [r.levelname for r in caplog.records if "lease lost" in r.message] == ["INFO"]


async def test_a_duplicate_job_does_nothing_twice(database_url: str, db: Connection) -> None:
    order = reserve(db, item(db), "ann")
    message = {"kind": "open", "payment_id": order.payment_id}
    for _ in range(3):
        db.execute("select pgmq.send('payments', %s)", [Jsonb(message)])
    provider, box = FakeProvider(), Box()
    async with working(database_url, provider, box):
        await until(lambda: idle(db))
    assert len(provider.sessions) == 1
    assert box.subjects == [("ann", "Shoe: reserved for you")]


async def test_a_refused_job_ends_in_the_dead_letters_and_can_be_tried_again(
    database_url: str, db: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "flashsale.worker")
    order = reserve(db, item(db), "ann")
    pay(db, order)
    late = reserve(db, item(db, "sock"), "ann")
    call(db, "cancel", late.order_id)
    pay(db, late)
    db.execute("update pgmq.q_payments set read_ct = 298 where message ->> 'kind' = 'refund'")
    provider = FakeProvider()

    async def refuse(key: str) -> None:
        if key.endswith("refund"):
            raise ProviderRefused("wrong_amount", "x\0y\n" + 5000 * "z")

    provider.fault = refuse
    async with working(database_url, provider):
        await until(lambda: provider.calls)
        backed_off = (
            "select from pgmq.q_payments where vt > clock_timestamp() + interval '1 minute'"
        )
        await until(lambda: rows(db, backed_off))  # the backoff has grown
        end_leases(db)
        (letter,) = await until(lambda: rows(db, "select * from flashsale.dead_letter"))
        assert letter.error.startswith("ProviderRefused: wrong_amount: x y zzz")
        assert len(letter.error) == trouble.ERROR_LENGTH
        provider.fault = nothing
        value(db, "select flashsale.retry_dead_letter(%s)", letter.dead_letter_id)
        await until(lambda: payment(db, late) == "refunded")
        await until(lambda: idle(db))
    assert [r.levelname for r in caplog.records if "fate=dead" in r.message] == ["ERROR"]
    assert_each_call_was_needed(provider, f"payment-{late.payment_id}-refund", caplog)


async def test_bad_messages_do_not_stop_the_others(database_url: str, db: Connection) -> None:
    for queue in ("payments", "notifications"):
        for poison in ({}, {"kind": "steal", "payment_id": 1, "order_id": 1}, [1]):
            db.execute("select pgmq.send(%s, %s)", [queue, Jsonb(poison)])
    order = reserve(db, item(db), "ann")
    # The database knows this kind and this worker does not, as after an upgrade of the database.
    db.execute(
        "select pgmq.send('notifications', %s)",
        [Jsonb({"kind": "new", "order_id": order.order_id})],
    )
    db.execute("update pgmq.q_notifications set read_ct = 9 where message ->> 'kind' = 'new'")
    box = Box()
    async with working(database_url, sender=box):
        await until(lambda: box.mails)
        await until(lambda: idle(db))
    letters = rows(db, "select * from flashsale.dead_letter order by died_at")
    assert len(letters) == 7
    assert [
        e.error for e in letters if e.message == {"kind": "new", "order_id": order.order_id}
    ] == ["ValidationError"]


async def test_a_result_that_the_database_refuses_is_retried_then_given_up(
    database_url: str, db: Connection
) -> None:
    """Two payments with the same session: a fault of the provider that no retry can fix."""
    ann, bob = many(db, item(db, stock=2), ["ann", "bob"])
    provider = FakeProvider()
    for order in (ann, bob):
        key = f"payment-{order.payment_id}-open"
        provider.sessions[key] = CheckoutSession("same", "http://pay/same")
    db.execute("update pgmq.q_payments set read_ct = 9")
    async with working(database_url, provider):
        (letter,) = await until(lambda: rows(db, "select * from flashsale.dead_letter"))
    assert letter.error.startswith("UniqueViolationError: ")
    assert {payment(db, ann), payment(db, bob)} == {"open", "failed"}


async def test_a_provider_that_is_down_is_probed_and_its_return_noticed(
    database_url: str,
    db: Connection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(worker_queue, "PROBE_SECONDS", 0.05)
    orders = many(db, item(db, stock=100), [f"c{n}" for n in range(100)])
    provider = FakeProvider()
    at_once = []

    async def down(_: str) -> None:
        at_once.append(provider.under_way)
        await asyncio.sleep(0.001)
        raise ProviderUnavailable("connection refused")

    provider.fault = down
    async with working(database_url, provider, job_concurrency=20):
        await until(lambda: len(provider.calls) >= 25)  # after the first burst one at a time
        assert max(at_once) == 20 and max(at_once[20:]) == 1
        assert value(db, "select max(read_ct) from pgmq.q_payments") <= 2
        assert value(db, "select count(*) from pgmq.q_payments where read_ct = 0") > 50
        provider.fault = nothing
        await until(lambda: all(payment(db, o) == "open" for o in orders))
    assert len(provider.sessions) == 100
    assert caplog.text.count("failures in a row, probing") == 1


class Slots(PaymentQueue):
    """All jobs that may be under way at once fail, half of them while the others are taken."""

    def __init__(self, stop: asyncio.Event) -> None:
        unused = settings("postgresql://nowhere", job_concurrency=20)
        super().__init__(unused, Jobs(unused), stop, FakeProvider())
        self.takes: list[int] = []
        self.recorded = asyncio.Event()

    async def take(self, limit: int, lease_seconds: int) -> list[LeasedJob]:
        self.takes.append(limit)
        if len(self.takes) == 2:
            await until(lambda: self.is_down)
        elif len(self.takes) > 2:
            self._stop.set()
            return []
        return [LeasedJob(n, 1, {}) for n in range(10)]

    async def perform(self, job: LeasedJob) -> worker_queue.Acknowledge:
        raise ProviderUnavailable("connection refused")


async def test_a_worker_whose_calls_all_fail_at_once_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It had no job left to wait for, and ended."""
    monkeypatch.setattr(worker_queue, "PROBE_SECONDS", 0.05)
    queue = Slots(asyncio.Event())

    async def retry(*_: object) -> str:
        await until(lambda: len(queue.takes) == 2)
        await asyncio.sleep(0.02)  # until all slots are taken
        return "retry"

    monkeypatch.setattr(queue.jobs, "retry", retry)
    async with asyncio.timeout(10):
        await queue.work()
    assert queue.takes == [20, 10, 1]


class NotThoughtOf(Exception):  # noqa: N818 - the words are clear
    """Something that nobody has thought of."""


@pytest.mark.parametrize("part", ["payments", "notifications", "sweep", "alive"])
@pytest.mark.parametrize(
    "error",
    [NotThoughtOf(), ExceptionGroup("several", [NotThoughtOf()]), asyncio.CancelledError()],
    ids=["error", "group", "cancelled"],
)
async def test_no_error_ends_a_part_of_the_worker(
    database_url: str,
    db: Connection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    part: str,
    error: BaseException,
) -> None:
    monkeypatch.setattr(worker, "RETRY_MAX_SECONDS", 0.01)
    owner, name = {
        "payments": (PaymentQueue, "work"),
        "notifications": (NotificationQueue, "work"),
        "sweep": (worker, "_sweep"),
        "alive": (worker, "_say_alive"),
    }[part]
    works, begun = getattr(owner, name), 0

    async def fails_first(*args: Any) -> None:
        nonlocal begun
        begun += 1
        if begun < 3:
            raise error
        await works(*args)

    monkeypatch.setattr(owner, name, fails_first)
    order = reserve(db, item(db), "ann")
    box = Box()
    async with working(database_url, sender=box):
        await until(lambda: payment(db, order) == "open")
        await until(lambda: box.mails)
        await until(lambda: begun == 3 and sweeps(db))
    assert caplog.text.count(f"{part} has failed, and begins again") == 2


async def test_results_that_come_during_a_call_share_the_next_one() -> None:
    calls: list[list[int]] = []
    door = Door()

    async def record(results: Sequence[int]) -> set[int]:
        calls.append(list(results))
        await door("")
        return {n for n in results if n != 3}

    results = Results(record)
    adding = [asyncio.create_task(results.add(n, n)) for n in range(5)]
    await until(lambda: calls)
    adding[4].cancel()
    more = [asyncio.create_task(results.add(n, n)) for n in (5, 6)]
    await asyncio.sleep(0)
    door.opened.set()
    done = await asyncio.gather(*adding, *more, return_exceptions=True)
    assert done[:4] == [True, True, True, False] and done[5:] == [True, True]
    assert calls == [[0, 1, 2, 3, 4], [5, 6]]


async def test_a_result_that_is_refused_takes_no_other_along() -> None:
    calls = 0

    async def record(results: Sequence[int]) -> set[int]:
        nonlocal calls
        calls += 1
        if 2 in results:
            raise asyncpg.UniqueViolationError
        return set(results)

    results = Results(record)
    done = await asyncio.gather(*(results.add(n, n) for n in range(4)), return_exceptions=True)
    assert [it if it is True else type(it) for it in done] == [
        True,
        True,
        asyncpg.UniqueViolationError,
        True,
    ]
    assert calls == 5


async def test_while_the_database_is_away_results_are_not_tried_one_by_one() -> None:
    calls = 0

    async def record(results: Sequence[int]) -> set[int]:
        nonlocal calls
        calls += 1
        raise ConnectionRefusedError

    results = Results(record)
    done = await asyncio.gather(*(results.add(n, n) for n in range(4)), return_exceptions=True)
    assert {type(it) for it in done} == {ConnectionRefusedError}
    assert calls == 1


async def test_a_provider_that_refuses_is_not_down(
    database_url: str, db: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """It has answered; with probes, a few bad orders would hold all others up."""
    many(db, item(db, stock=100), [f"c{n}" for n in range(40)])
    provider = FakeProvider()

    async def refuse(_: str) -> None:
        raise ProviderRefused("bad_currency", "no")

    provider.fault = refuse
    async with working(database_url, provider, job_concurrency=20):
        await until(lambda: len(provider.calls) >= 40)
    assert "failures in a row" not in caplog.text


@pytest.fixture(name="notes")
def notes_fixture(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What the worker says about the provider, by quick notes and probes."""
    monkeypatch.setattr(worker_queue, "PROBE_SECONDS", 0.05)
    monkeypatch.setattr(payments, "NOTE_SECONDS", 0.05)
    notes: list[bool] = []
    note = Jobs.note_provider

    async def noted(self: Jobs, is_down: bool) -> None:
        notes.append(is_down)
        await note(self, is_down)

    monkeypatch.setattr(Jobs, "note_provider", noted)
    return notes


def has_called(provider: FakeProvider, times: int) -> bool:
    return len(provider.calls) >= times


def is_down(db: Connection) -> bool:
    return bool(value(db, "select is_down from flashsale.provider_status"))


async def no_answer(_: str) -> None:
    raise ProviderUnavailable("connection refused")


@pytest.mark.parametrize("fault", ["no answer", "hangs"])
async def test_the_database_is_told_that_the_provider_is_down_and_that_it_is_back(
    database_url: str, db: Connection, notes: list[bool], fault: str
) -> None:
    orders = many(db, item(db, stock=30), [f"c{n}" for n in range(30)])
    provider = FakeProvider()
    provider.fault = no_answer if fault == "no answer" else Door()
    seconds = 5.0 if fault == "no answer" else 0.5
    async with working(database_url, provider, provider_timeout_seconds=seconds):
        await until(lambda: len(notes) >= 5)
        assert set(notes) == {True}
        assert is_down(db)
        provider.fault = nothing
        await until(lambda: all(payment(db, o) == "open" for o in orders))
        await until(lambda: not is_down(db))
        said = len(notes)
        await asyncio.sleep(0.5)
        assert len(notes) == said
    assert sorted(notes, reverse=True) == notes and notes[-1] is False


async def test_a_call_that_hangs_keeps_the_provider_down(
    database_url: str, db: Connection, notes: list[bool]
) -> None:
    """Its time-out may be longer than what a note counts."""
    many(db, item(db, stock=30), [f"c{n}" for n in range(30)])
    provider = FakeProvider()
    provider.fault = no_answer
    async with working(database_url, provider, provider_timeout_seconds=15.0) as task:
        await until(lambda: notes)
        provider.fault = door = Door()
        await until(lambda: door.waiting)
        await asyncio.sleep(0.2)  # what failed before is noted
        said = len(notes)
        await until(lambda: len(notes) > said + 3, seconds=10)
        assert set(notes) == {True}
        task.cancel()


async def test_a_worker_that_has_nothing_to_try_does_not_say_that_the_provider_is_down(
    database_url: str, db: Connection, notes: list[bool]
) -> None:
    """It might be back, and another worker may have said so."""
    many(db, item(db, stock=30), [f"c{n}" for n in range(30)])
    provider = FakeProvider()
    provider.fault = no_answer
    async with working(database_url, provider):
        await until(lambda: len(notes) >= 3)
        # Another worker has leased the jobs, those of this one included.
        db.execute("update pgmq.q_payments set vt = now() + '1 hour', read_ct = read_ct + 1")
        await asyncio.sleep(0.5)  # calls that were under way have failed
        said = len(notes)
        await asyncio.sleep(0.5)
        assert notes == [True] * said


async def test_the_return_of_the_provider_is_said_again_until_the_database_knows(
    database_url: str, db: Connection, notes: list[bool], caplog: pytest.LogCaptureFixture
) -> None:
    many(db, item(db, stock=30), [f"c{n}" for n in range(30)])
    provider = FakeProvider()
    provider.fault = no_answer
    async with working(database_url, provider):
        await until(lambda: is_down(db))
        db.execute("alter function flashsale.note_provider(boolean) rename to away")
        provider.fault = nothing
        await until(lambda: notes.count(False) >= 3)
        db.execute("alter function flashsale.away(boolean) rename to note_provider")
        await until(lambda: not is_down(db))
    assert caplog.text.count("noting whether the provider is down failed") == 1


async def test_a_worker_that_is_behind_after_an_outage_says_so_until_it_has_caught_up(
    database_url: str, db: Connection, notes: list[bool]
) -> None:
    orders = many(db, item(db, stock=100), [f"c{n}" for n in range(100)])
    provider = FakeProvider()
    provider.fault = no_answer

    async def slow(_: str) -> None:
        await asyncio.sleep(0.1)

    async with working(database_url, provider, job_concurrency=4):
        await until(lambda: is_down(db))
        provider.fault = slow
        await until(lambda: notes.count(False) >= 5)
        assert not all(payment(db, o) == "open" for o in orders)
        provider.fault = nothing
        await until(lambda: idle(db))
        await asyncio.sleep(0.2)
        said = len(notes)
        await asyncio.sleep(0.2)
        assert len(notes) == said


async def test_a_worker_is_behind_though_it_finds_no_job_for_a_moment(
    database_url: str, db: Connection, notes: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a sweep has locked the orders, all jobs are put off, and the queue seems empty."""
    take, takes = Jobs.take_payment_jobs, itertools.count()

    async def take_or_find_them_locked(
        self: Jobs, limit: int, lease_seconds: int
    ) -> list[LeasedJob]:
        return await take(self, limit, lease_seconds) if next(takes) % 2 == 0 else []

    orders = many(db, item(db, stock=100), [f"c{n}" for n in range(100)])
    provider = FakeProvider()
    provider.fault = no_answer
    async with working(database_url, provider, job_concurrency=4, job_poll_seconds=0.3):
        await until(lambda: is_down(db))
        provider.fault = nothing
        monkeypatch.setattr(Jobs, "take_payment_jobs", take_or_find_them_locked)
        await until(lambda: False in notes)
        notes.clear()
        opened = len(provider.sessions)
        await until(lambda: len(provider.sessions) > opened + 40)
        assert not all(payment(db, o) == "open" for o in orders)
        assert notes.count(False) >= 6, "a note for each of ten takes, unless the machine is busy"


async def test_the_jobs_of_holds_that_went_back_notice_the_provider_s_return(
    database_url: str, db: Connection, clock: Clock, notes: list[bool]
) -> None:
    """Nobody is promoted meanwhile, so there is no other job."""
    shoe = item(db, stock=10)
    orders = many(db, shoe, [f"c{n}" for n in range(10)])
    provider = FakeProvider()
    provider.fault = no_answer
    async with working(database_url, provider):
        await until(lambda: is_down(db))
        clock.advance(60)

        def all_wait() -> bool:
            call(db, "note_provider", True)  # so that the test's clock does not matter
            return bool(value(db, "select count(*) = 10 from flashsale.waiting_line"))

        await until(all_wait)
        db.execute("update pgmq.q_payments set read_ct = 9")  # they were tried for long
        for _ in range(3):
            more = len(provider.calls) + 3
            await until(partial(has_called, provider, more))
        provider.fault = nothing
        await until(lambda: all(is_open(db, order) for order in orders))
    assert rows(db, "select * from flashsale.dead_letter") == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ProviderUnavailable("away"), "unavailable"),
        (TimeoutError(), "unavailable"),
        (OSError("reset"), "unavailable"),
        (RuntimeError("a bug of the plug-in"), "unavailable"),
        (ProviderRefused("no"), "refused"),
    ],
    ids=["no answer", "late", "reset", "bug", "refusal"],
)
async def test_only_an_answer_is_the_customer_s_loss(
    database_url: str, db: Connection, error: Exception, expected: str
) -> None:
    reserve(db, item(db), "ann")
    provider = FakeProvider()

    async def fail(_: str) -> None:
        raise error

    provider.fault = fail
    noted = (
        "select max(case when unavailable_at is not null then 'unavailable' "
        "when refused_at is not null then 'refused' end) from flashsale_data.payments"
    )
    async with working(database_url, provider):
        assert await until(lambda: value(db, noted)) == expected


async def test_the_time_of_a_capture_that_the_void_finds_is_the_order_s(
    database_url: str, db: Connection, clock: Clock
) -> None:
    """The event has not come; the void is answered when the deadline is over."""
    order = reserve(db, item(db), "ann")
    provider = FakeProvider()
    async with working(database_url, provider):
        await until(lambda: is_open(db, order))
        captured_at = clock.at(50)
        provider.captured[f"s{order.payment_id}"] = SessionCaptured(1000, "EUR", captured_at)
        clock.advance(60)
        await until(lambda: status(db, order.order_id).status == "paid")
    assert status(db, order.order_id).paid_at == captured_at


async def test_mail_that_could_not_be_sent_is_sent_later(database_url: str, db: Connection) -> None:
    reserve(db, item(db), "ann")
    box = Box()
    box.failing = True
    async with working(database_url, sender=box):
        await until(
            lambda: value(
                db, "select max(vt) > now() and max(read_ct) > 0 from pgmq.q_notifications"
            )
        )
        box.failing = False
        await until(lambda: box.mails)
        await until(lambda: idle(db))
    assert len(box.mails) == 1


# The database


async def test_broken_connections_lose_nothing(database_url: str, db: Connection) -> None:
    shoe = item(db, stock=30)
    provider, box = FakeProvider(), Box()
    async with working(database_url, provider, box, sweep_interval_seconds=0.02):
        for n in range(30):
            reserve(db, shoe, f"c{n}")
            db.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where application_name = 'flashsale-worker' and datname = current_database()"
            )
            await asyncio.sleep(0)
        await until(lambda: len(provider.sessions) == 30)
        end_leases(db)  # of those that were taken by a connection that broke
        await until(lambda: idle(db))
        swept = sweeps(db)
        await until(lambda: sweeps(db) > swept)
    assert {m.to for m in box.mails} == {f"c{n}" for n in range(30)}


async def test_an_outage_of_the_database_is_logged_once_and_survived(
    database_url: str,
    postgres: EmbeddedPostgres,
    db: Connection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "flashsale.worker")
    hits: Counter[str] = Counter()
    hit = trouble.Trouble.hit

    def count(self: trouble.Trouble, error: Exception) -> float:
        hits[self.what] += 1
        return hit(self, error)

    monkeypatch.setattr(trouble.Trouble, "hit", count)
    shoe = item(db)
    name = database_url.rsplit("/", 1)[1]
    box = Box()
    admin = psycopg.connect(postgres.url("postgres", "postgres"), autocommit=True)
    with admin:
        admin.execute(f"alter database {name} allow_connections false")
        try:
            async with working(database_url, sender=box) as task:  # it starts without the database
                await until(lambda: hits.total() > 12)
                assert not task.done()
                assert caplog.text.count("sweep failed") == 1
                assert caplog.text.count("taking payments failed") == 1
                admin.execute(f"alter database {name} allow_connections true")
                reserve(db, shoe, "ann")
                await until(lambda: box.mails)
                await until(lambda: "sweep works again" in caplog.text)
        finally:
            admin.execute(f"alter database {name} allow_connections true")


BROKEN = """
create function flashsale_data.broken() returns trigger language plpgsql as $$
begin
  if new.item_id = %s and new.status = 'reserved' then
    %s
  end if;
  return new;
end $$;
create trigger broken before update on flashsale_data.orders
for each row execute function flashsale_data.broken();
"""


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("raise exception 'broken';", "P0001: broken"),
        ("perform pg_sleep(60);", "TimeoutError"),
    ],
)
async def test_an_error_at_one_item_is_logged_once_and_the_others_go_on(
    database_url: str, db: Connection, caplog: pytest.LogCaptureFixture, fault: str, error: str
) -> None:
    caplog.set_level(logging.INFO, "flashsale.worker")
    shoe, hat = item(db, stock=0), item(db, "hat", stock=0)
    ann, bob = reserve(db, shoe, "ann"), reserve(db, hat, "bob")
    db.execute((BROKEN % (shoe, fault)).encode())
    call(db, "restock", shoe, 1)
    failures = "select max(failures) from flashsale.sweep_failure where item_id = %s"
    async with working(database_url, statement_timeout_seconds=1.0):
        await until(lambda: (value(db, failures, shoe) or 0) >= 2)
        call(db, "restock", hat, 1)
        await until(lambda: status(db, bob.order_id).status == "reserved")
        assert value(db, "select error from flashsale.sweep_failure") == error
        assert caplog.text.count(f"sweeping item {shoe} failed") == 1
        assert "sweep failed" not in caplog.text
        db.execute("drop trigger broken on flashsale_data.orders")
        await until(lambda: status(db, ann.order_id).status == "reserved")
        await until(lambda: f"sweeping item {shoe} works again" in caplog.text)
    assert rows(db, "select * from flashsale.sweep_failure") == []
    db.execute("drop function flashsale_data.broken()")


async def test_many_lines_end_while_another_item_is_served(
    database_url: str, db: Connection, clock: Clock
) -> None:
    """Each item in transactions of its own, each of them far inside the statement timeout."""
    for n in range(30):
        many(db, item(db, f"i{n}", stock=0, closes_at=clock.at(30)), [f"c{c}" for c in range(250)])
    clock.advance(30)
    async with working(database_url, statement_timeout_seconds=1.0):
        ann, bob = many(db, item(db), ["ann", "bob"])
        call(db, "cancel", ann.order_id)
        await until(lambda: status(db, bob.order_id).status == "reserved")
        await until(lambda: not rows(db, "select from flashsale.waiting_line limit 1"))
    assert rows(db, "select * from flashsale.sweep_failure") == []


async def test_an_item_with_more_to_do_comes_again_in_the_same_sweep(
    database_url: str, db: Connection, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, set_to in {"SWEEP_SECONDS": 60.0, "SWEEP_LIMIT": 10, "ITEM_LIMIT": 10}.items():
        monkeypatch.setattr(worker, name, set_to)
    many(db, item(db, stock=35, hold_seconds=10), [f"c{n}" for n in range(35)])
    db.execute("delete from pgmq.q_payments")  # a sweep leaves out orders whose jobs are being done
    clock.advance(10)
    async with working(database_url, sweep_interval_seconds=60.0):
        await until(lambda: value(db, "select sum(expired) from flashsale.sweep_status") == 35)
        assert value(db, "select sweeps from flashsale.sweep_status") == 1


async def test_no_connection_is_held_while_the_provider_is_called(
    database_url: str, db: Connection
) -> None:
    many(db, item(db, stock=40), [f"c{n}" for n in range(40)])
    provider = FakeProvider()
    provider.fault = door = Door()
    async with working(database_url, provider, job_concurrency=20):
        await until(lambda: provider.under_way == 20)  # and no more, or leases would run out
        held = value(
            db,
            "select count(*) from pg_stat_activity where datname = current_database() "
            "and application_name = 'flashsale-worker' and state like 'idle in transaction%%'",
        )
        assert held == 0
        swept = sweeps(db)
        await until(lambda: sweeps(db) > swept)
        assert provider.under_way == 20
        door.opened.set()
        await until(lambda: idle(db))
    assert len(provider.sessions) == 40


async def test_two_workers_share_the_work(database_url: str, db: Connection) -> None:
    many(db, item(db, stock=100), [f"c{n}" for n in range(100)])
    one, two, box = FakeProvider(), FakeProvider(), Box()
    async with working(database_url, one, box), working(database_url, two, box):
        await until(lambda: idle(db))
    assert sorted(one.calls + two.calls) == sorted({*one.calls, *two.calls})
    assert len(one.calls + two.calls) == 100
    assert len({m.message_id for m in box.mails}) == len(box.mails) == 100


# Start and stop


async def test_a_stop_takes_nothing_new_and_finishes_what_is_under_way(
    database_url: str, db: Connection
) -> None:
    shoe = item(db, stock=2)
    ann = reserve(db, shoe, "ann")
    provider = FakeProvider()
    provider.late = door = Door()
    stop = asyncio.Event()
    task = asyncio.create_task(worker.run(settings(database_url), provider, Box(), stop))
    await until(lambda: door.waiting)
    stop.set()
    assert not (await asyncio.wait([task], timeout=0.3))[0]
    bob = reserve(db, shoe, "bob")
    door.opened.set()
    await task
    assert payment(db, ann) == "open"
    assert payment(db, bob) == "requested"
    assert len(provider.calls) == 1


async def test_a_stop_does_not_wait_for_ever(
    database_url: str, db: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    reserve(db, item(db), "ann")
    provider = FakeProvider()
    provider.fault = door = Door()
    async with working(database_url, provider, worker_stop_seconds=0.2):
        await until(lambda: door.waiting)
    assert "gave up on payments" in caplog.text
    assert depth(db) == 1  # for another worker, when the lease is over


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_signals_stop_it(database_url: str, db: Connection, signum: int) -> None:
    s = settings(database_url)
    task = asyncio.create_task(worker.run(s, FakeProvider(), Box()))
    await until(lambda: rows(db, "select * from flashsale.sweep_status"))
    os.kill(os.getpid(), signum)
    await asyncio.wait_for(task, 5)


async def test_a_worker_is_healthy_while_it_sweeps(database_url: str, db: Connection) -> None:
    s = settings(database_url)
    assert not await worker.healthy(s)
    db.execute("select flashsale.sweep('worker:elsewhere:1')")
    assert not await worker.healthy(s)
    async with working(database_url):
        await until(
            lambda: rows(
                db, "select * from flashsale.sweep_status where runner = %s", worker.runner()
            )
        )
        assert await worker.healthy(s)
    db.execute("update flashsale_data.sweepers set swept_at = swept_at - interval '1 minute'")
    assert not await worker.healthy(s)


def health_check(database_url: str) -> subprocess.CompletedProcess[str]:
    """As docker-compose runs it: by its exit status."""
    return subprocess.run(
        [sys.executable, "-m", "flashsale.worker"],
        env=environment(database_url=database_url),
        capture_output=True,
        text=True,
    )


async def test_the_health_check_passes_while_a_worker_sweeps(
    database_url: str, db: Connection
) -> None:
    async with working(database_url):
        await until(lambda: rows(db, "select * from flashsale.sweep_status"))
        check = await asyncio.to_thread(health_check, database_url)
    assert (check.returncode, check.stderr) == (0, "")


def test_the_health_check_fails_when_no_worker_sweeps(database_url: str) -> None:
    check = health_check(database_url)
    assert (check.returncode, check.stderr) == (
        1,
        "no worker on this machine has swept lately\n",
    )


def test_the_health_check_fails_without_the_database() -> None:
    check = health_check("postgresql://flashsale@127.0.0.1:1/flashsale")
    assert check.returncode == 1
    assert "ConnectionRefusedError" in check.stderr
