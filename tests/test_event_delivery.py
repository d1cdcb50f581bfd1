"""The feed is delivered to the receiver at FLASHSALE_EVENTS_URL: in order, each at least once."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

import psycopg
import pytest

from flashsale.cursors import cursor_of, event_of
from flashsale.database.jobs import Jobs, LeasedEvent
from flashsale.processes import free_port
from flashsale.settings import Settings, SettingsError
from flashsale.testing import Clock, call_all
from flashsale.worker import run as worker
from flashsale.worker.events import EventDelivery, retry_seconds
from support import Connection, connect, one, rows, value
from test_standard_webhooks import secret
from test_worker import Box, FakeProvider, settings, sweeps, until, working

SECRET = secret()
ANSWER = "HTTP/1.1 {} X\r\nContent-Length: 0\r\n{}\r\n"

Turn = Callable[[int], "str | None"]
"""What is answered to the n-th delivery, from 1 on; None: the connection is reset."""


class EventRequest(NamedTuple):
    """A request as it came to the receiver."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def event(self) -> dict[str, Any]:
        return dict(json.loads(self.body))

    @property
    def event_id(self) -> int:
        return event_of(self.event["event_id"]) or 0

    def is_signed_with(self, given: str) -> bool:
        """As a receiver checks it, without our code."""
        signed = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode()
        key = base64.b64decode(given.removeprefix("whsec_"))
        made = base64.b64encode(hmac.new(key, signed + self.body, hashlib.sha256).digest())
        said = [it.removeprefix("v1,") for it in self.headers["webhook-signature"].split(" ")]
        return any(hmac.compare_digest(made.decode(), it) for it in said)


class EventReceiver:
    """An HTTP server that keeps what it gets, and answers 204, or as `turn` says."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/events"
        self.deliveries: list[EventRequest] = []
        self.turn: Turn = lambda n: ok()
        self.hold: asyncio.Event | None = None
        self.at_once = self.most_at_once = 0

    @property
    def ids(self) -> list[int]:
        return [it.event_id for it in self.deliveries]

    @property
    def first_ids(self) -> list[int]:
        """Without repeats: what a receiver that remembers handles."""
        return list(dict.fromkeys(self.ids))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                first = await reader.readexactly(1)
                if first == b"\x16":  # a TLS handshake
                    writer.write(answer(400).encode())
                    break
                head = (first + await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
                headers["webhook-signature"] = re.findall("signature: (.*)", "\n".join(head))[0]
                body = await reader.readexactly(int(headers["content-length"]))
                self.at_once += 1
                self.most_at_once = max(self.most_at_once, self.at_once)
                self.deliveries.append(
                    EventRequest(head[0].split(" ")[1], headers, body, time.monotonic())
                )
                said = self.turn(len(self.deliveries))
                if self.hold:
                    await self.hold.wait()
                self.at_once -= 1
                if said is None:
                    break
                writer.write(said.encode())
        writer.close()


def ok() -> str:
    return answer(204)


def answer(status: int, *headers: str) -> str:
    return ANSWER.format(status, "".join(f"{it}\r\n" for it in headers))


@asynccontextmanager
async def receiving() -> AsyncIterator[EventReceiver]:
    receiver = EventReceiver()
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", receiver.port)
    try:
        yield receiver
    finally:
        server.close()


def fast(receiver: EventReceiver, **changes: Any) -> dict[str, Any]:
    """Settings of a worker that delivers to this receiver, and soon again what has failed."""
    return {
        "events_url": receiver.url,
        "events_secret": SECRET,
        "delivery_backoff_seconds": 0.02,
        "delivery_backoff_max_seconds": 0.1,
    } | changes


def publish(db: Connection, *event_ids: int) -> None:
    """Puts events into the feed, as its publisher does."""
    for event_id in event_ids:
        db.execute(
            "insert into flashsale_data.events (event_id, type, at, item_id, order_id, data) "
            "values (%s, 'order.paid', flashsale.clock(), 1, %s, '{\"n\": 1}')",
            (event_id, (1 << 32) + event_id),
        )
    db.execute("update flashsale_data.feed set last_event_id = %s", (max(event_ids),))


def delivery(db: Connection) -> Any:
    return one(db, "select * from flashsale.event_delivery")


def is_through(db: Connection, event_id: int) -> bool:
    found = rows(db, "select delivered_id from flashsale.event_delivery")
    return bool(found) and found[0].delivered_id == event_id


# What is sent


async def test_events_are_delivered_in_their_order_and_signed(
    database_url: str, db: Connection
) -> None:
    publish(db, *range(1, 251))
    async with receiving() as receiver:
        url = receiver.url + "/of/shop/?token=a%20b"
        async with working(database_url, **fast(receiver, events_url=url)):
            await until(partial(is_through, db, 250))
            publish(db, 1 << 32, (1 << 32) + 1)  # the numbers have gaps
            await until(partial(is_through, db, (1 << 32) + 1))
    assert receiver.ids == [*range(1, 251), 1 << 32, (1 << 32) + 1]
    assert receiver.most_at_once == 1
    first = receiver.deliveries[0]
    assert first.path == "/events/of/shop/?token=a%20b"
    assert first.headers["content-type"] == "application/json"
    assert first.headers["webhook-id"] == cursor_of(1)
    assert abs(int(first.headers["webhook-timestamp"]) - time.time()) < 60
    at = first.event.pop("timestamp")
    assert abs(datetime.fromisoformat(at).timestamp() - time.time()) < 60
    data = first.event["data"]
    assert data["n"] == 1
    assert first.event == {
        "type": "order.paid",
        "timestamp": at,
        "event_id": cursor_of(1),
        "item_id": 1,
        "order_id": str((1 << 32) + 1),
        "data": data,
    }
    assert all(it.is_signed_with(SECRET) for it in receiver.deliveries)
    assert not first.is_signed_with(secret())
    seen = delivery(db)
    assert (seen.behind, seen.oldest_undelivered_seconds, seen.error, seen.worker) == (
        *(0, 0, None),
        None,
    )


async def test_both_secrets_sign_while_they_are_rotated(database_url: str, db: Connection) -> None:
    publish(db, 1)
    old, new = secret(), secret()
    async with (
        receiving() as receiver,
        working(database_url, **fast(receiver, events_secret=f"{new} {old}")),
    ):
        await until(partial(is_through, db, 1))
    (sent,) = receiver.deliveries
    assert sent.is_signed_with(old)
    assert sent.is_signed_with(new)


async def test_without_a_url_nothing_is_taken(database_url: str, db: Connection) -> None:
    publish(db, 1)
    async with working(database_url):
        await until(lambda: sweeps(db))
    assert rows(db, "select * from flashsale.event_delivery") == []


# Failures


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (answer(500), "NotDelivered: status 500"),
        (answer(302, "Location: https://elsewhere.example/"), "NotDelivered: status 302"),
        (answer(404), "NotDelivered: status 404"),
        (answer(410), "NotDelivered: status 410"),
        (answer(413), "NotDelivered: status 413"),
        (None, "NotDelivered: the connection was closed without an answer"),
        ("HTTP/1.1 200 X\r\nContent-Length: 5\r\n\r\n1", "NotDelivered: no answer in 0.5 seconds"),
        ("HTTP/1.1 200 X\r\nContent-Length: 9999999\r\n\r\n", "NotDelivered: not an answer"),
        ("SSH-2.0-OpenSSH\r\n\r\n", "NotDelivered: not an answer"),
    ],
)
async def test_what_is_no_success_is_shown_and_tried_again_and_later_events_wait(
    database_url: str, db: Connection, said: str | None, shown: str
) -> None:
    publish(db, 1, 2, 3)
    async with receiving() as receiver:
        failing = [True]
        receiver.turn = lambda n: said if failing[0] and receiver.ids[-1] == 2 else ok()
        changes = fast(receiver, delivery_timeout_seconds=0.5)
        async with working(database_url, **changes):
            await until(lambda: receiver.ids.count(2) >= 3)
            seen = await until(lambda: (it := delivery(db)).failures >= 2 and it)
            assert seen.error.startswith(shown)
            assert (seen.delivered_id, seen.behind) == (1, 2)
            assert seen.failing_since <= seen.failed_at <= seen.retry_at
            assert seen.oldest_undelivered_seconds > 0
            failing[0] = False
            await until(partial(is_through, db, 3))
    assert receiver.first_ids == [1, 2, 3]
    assert receiver.ids[-1] == 3
    assert receiver.ids.count(3) == 1
    ids = {it.headers["webhook-id"] for it in receiver.deliveries if it.event_id == 2}
    assert ids == {cursor_of(2)}
    seen = delivery(db)
    assert (seen.failures, seen.error, seen.failing_since, seen.retry_at) == (0, None, None, None)


async def test_a_receiver_that_is_down_or_has_no_tls_is_waited_for(
    database_url: str, db: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """Payments and sweeps go on meanwhile, and the log and the view show no secret."""
    caplog.set_level(logging.INFO)
    publish(db, 1, 2)
    down = EventReceiver()
    query = "?token=geheim"
    async with working(database_url, **fast(down, events_url=down.url + query)):
        seen = await until(lambda: rows(db, "select * from flashsale.event_delivery"))
        seen = await until(lambda: (it := delivery(db)).failures > 3 and it)
        assert "Connect" in seen.error
    async with receiving() as receiver:
        no_tls = receiver.url.replace("http:", "https:") + query
        async with working(database_url, **fast(receiver, events_url=no_tls)):
            await until(lambda: (it := delivery(db)).failures > 5 and "SSL" in it.error.upper())
            before = sweeps(db)
            await until(lambda: sweeps(db) > before + 2)
        assert receiver.ids == []
        async with working(database_url, **fast(receiver)):
            await until(partial(is_through, db, 2))
        assert receiver.ids == [1, 2]
    told = [it.getMessage() for it in caplog.records] + [seen.error]
    assert any("was not delivered, will keep trying" in it for it in told)
    assert any("works again" in it for it in told)
    assert not [it for it in told if "geheim" in it or SECRET[6:] in it]


async def test_a_receiver_that_never_answers_holds_up_neither_payments_nor_sweeps(
    database_url: str, db: Connection
) -> None:
    """While it is called, no connection and no lock is held."""
    publish(db, 1)
    async with receiving() as receiver:
        receiver.hold = asyncio.Event()
        async with working(database_url, **fast(receiver)):
            await until(lambda: receiver.ids == [1])
            db.execute("select from flashsale_data.event_deliveries for update nowait")
            transactions = rows(
                db,
                "select pid from pg_stat_activity where application_name = 'flashsale-worker' "
                "and datname = current_database() and state = 'idle in transaction'",
            )
            assert transactions == []
            before = sweeps(db)
            await until(lambda: sweeps(db) > before + 2)
            receiver.hold.set()
            await until(partial(is_through, db, 1))
    assert receiver.ids == [1]


def test_the_pause_doubles_and_has_a_random_part_and_an_end() -> None:
    s = Settings(delivery_backoff_seconds=1, delivery_backoff_max_seconds=60)
    for failures, longest in enumerate([1, 2, 4, 8, 16, 32, 60, 60]):
        pauses = [retry_seconds(s, failures, None) for _ in range(200)]
        assert longest / 2 <= min(pauses) < longest * 0.6
        assert longest * 0.9 < max(pauses) <= longest
    assert retry_seconds(s, 1_000_000, None) <= 60


@pytest.mark.parametrize(
    ("given", "least", "most"),
    [
        ("7", 7, 7),
        (" 7 ", 7, 7),
        ("0", 0.5, 1),
        ("61", 60, 60),
        ("9" * 400, 60, 60),
        ("-5", 0.5, 1),
        ("soon", 0.5, 1),
        ("", 0.5, 1),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.5, 1),
        ("Wed, 21 Oct 2999 07:28:00 GMT", 60, 60),
        ("Wed, 99 Oct 2999 07:28:00 GMT", 0.5, 1),
    ],
)
def test_retry_after_is_honoured_within_bounds(given: str, least: float, most: float) -> None:
    s = Settings(delivery_backoff_seconds=1, delivery_backoff_max_seconds=60)
    assert least <= retry_seconds(s, 0, given) <= most


async def test_the_receiver_is_not_asked_before_its_retry_after(
    database_url: str, db: Connection
) -> None:
    publish(db, 1)
    async with receiving() as receiver:
        receiver.turn = lambda n: answer(503, "Retry-After: 1") if n == 1 else ok()
        changes = fast(receiver, delivery_backoff_max_seconds=5)
        async with working(database_url, **changes):
            await until(partial(is_through, db, 1))
    first, second = receiver.deliveries
    assert second.at - first.at > 0.95


# One worker at a time, and crashes


async def test_several_workers_deliver_one_after_the_other(
    database_url: str, db: Connection
) -> None:
    publish(db, *range(1, 61))
    async with receiving() as receiver:
        receiver.turn = lambda n: answer(500) if n % 7 == 0 else ok()  # each gives the lease up
        async with (
            working(database_url, **fast(receiver)),
            working(database_url, **fast(receiver)),
            working(database_url, **fast(receiver)),
        ):
            await until(partial(is_through, db, 60))
    assert receiver.first_ids == [*range(1, 61)]
    assert receiver.ids == sorted(receiver.ids)
    assert receiver.most_at_once == 1


class Crash(BaseException):
    """What ends a worker at once."""


async def test_a_worker_that_dies_before_it_notes_a_delivery_repeats_it(
    database_url: str, db: Connection, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(db, 1, 2, 3)
    async with receiving() as receiver:
        s = settings(database_url, **fast(receiver))
        async with Jobs(s) as jobs:
            dying, living = (deliverer(s, jobs) for _ in range(2))

            async def dies(*_: object) -> bool:
                raise Crash

            with monkeypatch.context() as patched:
                patched.setattr(jobs, "events_delivered", dies)
                with pytest.raises(Crash):
                    await dying.deliver_some()
            before = receiver.ids
            assert before == [1, 2, 3][: len(before)] != []
            assert (delivery(db).delivered_id, delivery(db).worker) == (0, "w")
            assert not await living.deliver_some()  # not before the lease is over
            clock.advance(60)
            assert await living.deliver_some()
    assert receiver.ids == [*before, 1, 2, 3]
    assert is_through(db, 3)


def deliverer(s: Settings, jobs: Jobs) -> EventDelivery:
    return EventDelivery(s, jobs, asyncio.Event(), "w")


async def test_a_worker_that_was_away_for_too_long_does_not_undo_what_another_did(
    database_url: str, db: Connection, clock: Clock
) -> None:
    publish(db, 1, 2, 3)
    (late, *_), later = take(db, limit=1), []
    assert take(db) == []
    clock.advance(31)
    later = take(db)
    assert [it.event_id for it in later] == [1, 2, 3]
    assert value(db, "select flashsale.events_delivered(%s, 3, 0)", later[0].lease_id)
    assert not value(db, "select flashsale.events_delivered(%s, 1, 30)", late.lease_id)
    assert not value(db, "select flashsale.event_failed(%s, 'x', 5)", late.lease_id)
    assert (delivery(db).delivered_id, delivery(db).failures) == (3, 0)


def take(db: Connection, limit: int = 100) -> list[Any]:
    return call_all(db, "take_events", "w", 30, limit)


class FakeJobs:
    """A feed without a database, and a clock that goes on only by what is told to take time."""

    def __init__(self, event_ids: Sequence[int]) -> None:
        self.seconds = 0.0
        self.lease_until = 0.0
        self.noted: list[tuple[int | None, int]] = []
        self._event_ids = event_ids

    async def take_events(self, worker: str, lease_seconds: int, limit: int) -> list[LeasedEvent]:
        self._lease(lease_seconds)
        at = datetime(2030, 1, 1, tzinfo=UTC)
        return [LeasedEvent(1, 0, it, "order.paid", at, 1, None, "{}") for it in self._event_ids]

    async def events_delivered(
        self, lease_id: int, event_id: int | None, lease_seconds: int
    ) -> bool:
        self.noted.append((event_id, lease_seconds))
        self._lease(lease_seconds)
        return True

    def _lease(self, seconds: int) -> None:
        self.lease_until = self.seconds + seconds
        self.seconds += 0.1  # the answer's way back


@pytest.mark.parametrize(
    ("note_seconds", "noted"), [(0.2, [(1, 20), (2, 20), (3, 0)]), (1000, [(2, 20), (3, 0)])]
)
async def test_no_delivery_begins_that_could_last_longer_than_the_lease(
    monkeypatch: pytest.MonkeyPatch, note_seconds: float, noted: list[tuple[int, int]]
) -> None:
    """The lease is 20 s, and a delivery may take 15. Here each takes 3."""
    fake = FakeJobs([1, 2, 3])
    jobs: Any = fake
    delivering = deliverer(settings("postgresql://nowhere", **fast(EventReceiver())), jobs)
    left: list[float] = []

    async def post(event: LeasedEvent) -> None:
        left.append(fake.lease_until - fake.seconds)
        fake.seconds += 3

    monkeypatch.setattr("flashsale.worker.events.NOTE_SECONDS", note_seconds)
    monkeypatch.setattr(delivering, "_post", post)
    monkeypatch.setattr(delivering, "now", lambda: fake.seconds)
    await delivering.deliver_some()
    assert min(left) >= 15
    assert fake.noted == noted


# What staff can see and do


def test_the_lag_is_shown_and_staff_can_leave_out_an_event(
    database_url: str, db: Connection, clock: Clock
) -> None:
    publish(db, 1, 2, 5)
    (first, *_) = take(db)
    db.execute("select flashsale.events_delivered(%s, 1, 30)", (first.lease_id,))
    db.execute("select flashsale.event_failed(%s, 'status 413', 60)", (first.lease_id,))
    clock.advance(10)
    seen = delivery(db)
    assert (seen.delivered_id, seen.behind, seen.oldest_undelivered_seconds) == (1, 2, 10)
    assert (seen.failures, seen.error, seen.worker) == (1, "status 413", None)
    assert take(db) == []  # the next try is later
    with connect(database_url, "flashsale_operator") as staff:
        for event_id in (1, 5, 7):
            with pytest.raises(psycopg.Error) as refused:
                staff.execute("select flashsale.skip_event(%s, 'too large', 'eve')", (event_id,))
            assert (refused.value.sqlstate, refused.value.diag.constraint_name) == (
                *("RV219", "not_next_event"),
            )
        with pytest.raises(psycopg.Error) as refused:
            staff.execute("select flashsale.skip_event(2, '')")
        assert refused.value.sqlstate == "RV302"
        assert value(staff, "select flashsale.skip_event(2, 'too large', 'eve')") == 2
    noted = one(db, "select * from flashsale.history")
    assert (noted.staff, noted.action, noted.reason) == ("eve", "skip_event", "too large")
    assert (noted.before, noted.after) == (
        {"delivered_id": 1, "failures": 1, "error": "status 413"},
        {"delivered_id": 2},
    )
    assert (delivery(db).failures, delivery(db).error) == (0, None)
    assert [it.event_id for it in take(db)] == [5]


def test_staff_can_deliver_events_again_or_leave_out_all_of_them(
    database_url: str, db: Connection, clock: Clock
) -> None:
    publish(db, 1, 2, 3)
    with connect(database_url, "flashsale_operator") as staff:
        assert value(staff, "select flashsale.move_event_cursor(null, 'begin now')") == 3
        assert take(db) == []
        assert value(staff, "select flashsale.move_event_cursor(1, 'they lost some')") == 1
        for after in (-1, 4):
            with pytest.raises(psycopg.Error) as refused:
                staff.execute("select flashsale.move_event_cursor(%s, 'x')", (after,))
            assert refused.value.sqlstate == "RV302"
        (two, three) = take(db)
        assert [two.event_id, three.event_id] == [2, 3]
        # A worker delivers: what it notes does not move the cursor back, and the next delivery is
        # made when its lease is over.
        assert value(staff, "select flashsale.move_event_cursor(0, 'they lost all')") == 0
        assert not value(db, "select flashsale.events_delivered(%s, 3, 30)", two.lease_id)
        assert take(db) == []
        clock.advance(31)
        assert [it.event_id for it in take(db)] == [1, 2, 3]
    assert [it.action for it in rows(db, "select action from flashsale.history")] == (
        ["move_event_cursor"] * 3
    )


def test_events_that_were_deleted_before_their_delivery_are_not_passed_over(
    db: Connection,
) -> None:
    publish(db, 1, 2, 3)
    (first, *_) = take(db)
    db.execute("select flashsale.events_delivered(%s, 1, 0)", (first.lease_id,))
    db.execute("delete from flashsale_data.events where event_id <= 2")
    db.execute("update flashsale_data.feed set forgotten_through = 2")
    assert take(db) == []
    assert delivery(db).error.startswith("events were deleted before they were delivered")
    assert value(db, "select flashsale.move_event_cursor(2, 'they read the orders anew')") == 2
    assert delivery(db).error is None
    assert [it.event_id for it in take(db)] == [3]


def test_a_clock_that_goes_back_keeps_nobody_from_delivering(db: Connection, clock: Clock) -> None:
    publish(db, 1)
    (first,) = take(db)
    clock.advance(-3600)
    (second,) = take(db)
    assert second.lease_id > first.lease_id
    assert value(db, "select flashsale.event_failed(%s, 'x', 60)", second.lease_id)
    assert take(db) == []
    clock.advance(-3600)
    assert len(take(db)) == 1


# Settings


async def test_a_worker_with_a_url_and_no_secret_does_not_start() -> None:
    nowhere = settings("postgresql://nowhere", events_url="https://shop.example/events")

    with pytest.raises(SettingsError, match="FLASHSALE_EVENTS_SECRET is not set"):
        await worker.run(nowhere, FakeProvider(), Box(), asyncio.Event())
