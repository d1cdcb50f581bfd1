"""A simulated payment provider: a small service with a ledger, events, and bad days on demand.

    open ──▶ captured ──▶ refunded      A session is one attempt to pay: a failed one stays failed,
      ├────▶ failed                     the next attempt is a new session. expires_at is only for
      └────▶ voided                     show: what makes late money impossible is the void.

Everything that happens is one line of the ledger, on disk before anybody hears of it. Sessions and
undelivered events in memory are what the lines add up to, so a start after a crash is a replay.
One process: it holds a lock on the ledger, and decides between two awaits, so needs no other.
"""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import logging
import os
import random
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

import msgspec
from litestar import Litestar, Request, Response, Router, get, post, put
from litestar.exceptions import HTTPException
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from msgspec import Meta, Struct
from msgspec.structs import replace

from flashsale import signature
from flashsale.http_client import Client, NoAnswer, NobodyListens
from flashsale.settings import Settings, SettingsError

log = logging.getLogger("flashsale.provider")

DELIVERIES_AT_ONCE = 32
KNOCK_SECONDS = 1.0  # at most, between attempts to find somebody listening at the webhook
# The webhook refusing (4xx) is most likely a wrong secret or an older version of it. Both get
# mended, and the event is about money: so it is sent again, but not as eagerly.
REFUSED_BACKOFF_FACTOR = 10
NO_ANSWER, NOBODY = 0, -1  # in place of a status: broke off or took too long; nobody is listening

T = TypeVar("T")
Ident = Annotated[str, Meta(pattern=r"^[!-~]{1,255}\Z", description="Printable ASCII")]
Amount = Annotated[int, Meta(ge=1, le=10**15, description="Minor units of currency")]
Currency = Annotated[str, Meta(pattern=r"^[A-Z]{3}\Z", description="ISO 4217")]
Time = Annotated[datetime, Meta(tz=True)]
Probability = Annotated[float, Meta(ge=0, le=1)]
Milliseconds = Annotated[int, Meta(ge=0, le=600_000)]
Status = Literal["open", "captured", "failed", "voided", "refunded"]
EventType = Literal["payment.succeeded", "payment.failed", "payment.voided", "payment.refunded"]


# Requests


class Faults(Struct, frozen=True, forbid_unknown_fields=True):
    """What goes wrong, from never (0) to always (1). Calls are open, void and refund."""

    latency_ms: Milliseconds = 0
    hang: Probability = 0  # a call has no effect and no answer
    hang_ms: Milliseconds = 60_000  # at most; then 503
    fail: Probability = 0  # a call has no effect and gets 500
    fail_next: Annotated[int, Meta(ge=0, le=1_000_000)] = 0  # so do that many calls, from now
    lose_replies: Probability = 0  # a call has its effect, then the connection breaks
    duplicate_events: Probability = 0  # sent twice, at the same time
    reorder_events: Probability = 0  # sent after the next event, or after delay_ms
    delay_events: Probability = 0  # sent after delay_ms
    delay_ms: Milliseconds = 2_000
    seed: int | None = None  # starts the dice anew


class NewSession(Struct, frozen=True, forbid_unknown_fields=True):
    """A payment to collect."""

    payment_id: Ident
    amount: Amount
    currency: Currency
    order_id: Ident | None = None
    expires_at: Time | None = None


class Void(Struct, frozen=True, forbid_unknown_fields=True):
    """No more money, please."""


class Refund(Struct, frozen=True, forbid_unknown_fields=True):
    """All the money back. If it says how much, that must be what was captured."""

    amount: Amount | None = None
    currency: Currency | None = None


class Completion(Struct, frozen=True, forbid_unknown_fields=True):
    """What the customer's browser ends with."""

    outcome: Literal["succeed", "fail"]


# Answers


class Session(Struct, frozen=True):
    """One attempt to pay, and what became of it."""

    session_id: str
    payment_id: str
    order_id: str | None
    status: Status
    amount: int
    currency: str
    checkout_url: str
    expires_at: datetime | None
    created_at: datetime
    captured_at: datetime | None = None
    failed_at: datetime | None = None
    voided_at: datetime | None = None
    refunded_at: datetime | None = None
    how_to_pay: str | None = None


class Totals(Struct, frozen=True):
    """Sessions, and money by currency. What is refunded was captured, and counts as both."""

    sessions: int
    open: int
    failed: int
    voided: int
    captured: int
    refunded: int
    captured_amounts: dict[str, int]
    refunded_amounts: dict[str, int]
    undelivered_events: int


class Sessions(Struct, frozen=True):
    """A page of the sessions, oldest first. next: ask for it as `after`; null: that's all."""

    totals: Totals
    sessions: list[Session]
    next: int | None


class Event(Struct, frozen=True):
    """What the webhook is told."""

    event_id: str
    type: EventType
    session_id: str
    payment_id: str
    amount: int
    currency: str
    occurred_at: datetime


class Problem(Struct, frozen=True, omit_defaults=True):
    """RFC 9457. Programs go by `code`; a refusal by state shows the session as it is."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    session: Session | None = None


class Refused(Exception):  # noqa: N818 - an answer, not a fault
    """A problem to answer with."""

    def __init__(self, status: int, code: str, detail: str, session: Session | None = None) -> None:
        super().__init__(code)
        self.status = status
        self.code = code
        self.detail = detail
        self.session = session


# The ledger


class Line(Struct, frozen=True, tag_field="kind", tag=str.lower, kw_only=True):
    """One thing that happened. kind comes first, so that grep finds it."""

    at: datetime


class Opened(Line, frozen=True):
    session_id: str
    payment_id: str
    order_id: str | None
    amount: int
    currency: str
    expires_at: datetime | None
    key: str | None


class Moved(Line, frozen=True):
    """A session left the state it was in; the webhook is told under event_id."""

    to: Literal["captured", "failed", "voided", "refunded"]
    session_id: str
    payment_id: str
    amount: int
    currency: str
    event_id: str
    key: str | None


class Delivered(Line, frozen=True):
    event_id: str


Entry = Opened | Moved | Delivered

_EVENT_TYPES: dict[Status, EventType] = {
    "captured": "payment.succeeded",
    "failed": "payment.failed",
    "voided": "payment.voided",
    "refunded": "payment.refunded",
}


class LedgerError(Exception):
    """The ledger can't be read or written; the message says why."""


class Ledger:
    """An append-only file of JSON lines. Lines written together share one fsync."""

    def __init__(self, path: Path) -> None:
        """Opens the file, makes it if need be, and cuts off what a crash left half written."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._unsynced: list[bytes] = []
        self._written = 0
        self._durable = 0
        self._syncing: asyncio.Task[None] | None = None
        self._broken: LedgerError | None = None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise LedgerError(f"{path}: another provider is using this ledger") from None
        directory = os.open(path.parent, os.O_RDONLY)
        os.fsync(directory)  # or the file's name may be gone after a power cut
        os.close(directory)

    def replay(self) -> Iterator[Entry]:
        """Everything that ever happened. Errors: LedgerError if a line in the middle is damaged."""
        decoder = msgspec.json.Decoder(Entry)
        kept = 0
        with self._path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break  # nobody has been told of it: the fsync never happened
                try:
                    yield decoder.decode(line)
                except (msgspec.DecodeError, UnicodeError) as error:
                    raise LedgerError(f"{self._path}:{number}: {error}") from error
                kept += len(line)
        if os.fstat(self._fd).st_size > kept:
            log.warning("torn line cut off: ledger=%s offset=%d", self._path, kept)
            os.ftruncate(self._fd, kept)
        os.fsync(self._fd)  # what was read may not have got that far before the crash

    def write(self, entry: Entry) -> None:
        """Appends a line; it counts once flush() has returned."""
        self._unsynced.append(msgspec.json.encode(entry) + b"\n")
        self._written += 1

    async def flush(self) -> None:
        """Returns when everything written so far is on disk. Errors: LedgerError, now and for good.

        After a failed fsync nobody knows what is on disk: only a restart, a replay, finds out.
        """
        wanted = self._written
        while self._durable < wanted:
            if self._broken is not None:
                raise self._broken
            if self._syncing is None:
                self._syncing = asyncio.create_task(self._sync())
            await asyncio.shield(self._syncing)  # others wait for it too

    async def _sync(self) -> None:
        lines, upto = b"".join(self._unsynced), self._written
        self._unsynced.clear()
        try:
            await asyncio.to_thread(self._append, lines)
            self._durable = upto
        except OSError as error:
            log.error("ledger broken: ledger=%s error=%s", self._path, error)
            self._broken = LedgerError(f"{self._path}: {error}")
        finally:
            self._syncing = None

    def _append(self, lines: bytes) -> None:
        while lines:
            lines = lines[os.write(self._fd, lines) :]
        os.fsync(self._fd)

    async def close(self) -> None:
        try:
            await self.flush()
        finally:
            os.close(self._fd)


# Bad days


class Trouble:
    """The faults in force, and the dice that decide when they strike."""

    def __init__(self, faults: Faults, seed: int) -> None:
        self.faults = faults
        self._dice = random.Random(seed if faults.seed is None else faults.seed)

    def change(self, faults: Faults) -> None:
        self.faults = faults
        if faults.seed is not None:
            self._dice.seed(faults.seed)

    def strikes(self, probability: float) -> bool:
        return self._dice.random() < probability

    def fails(self) -> bool:
        if self.faults.fail_next > 0:
            self.faults = replace(self.faults, fail_next=self.faults.fail_next - 1)
            return True
        return self.strikes(self.faults.fail)


class Unreliable:
    """Middleware of the calls that the service makes: open, void, refund.

    Looking at sessions, completing them and changing the faults always work: those are the
    instruments of whoever does the experiment.
    """

    def __init__(self, app: ASGIApp, trouble: Trouble) -> None:
        self._app = app
        self._trouble = trouble

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        trouble, faults = self._trouble, self._trouble.faults
        if faults.latency_ms:
            await asyncio.sleep(faults.latency_ms / 1000)
        if trouble.fails():
            raise Refused(500, "simulated_failure", "Nothing was done.")
        if trouble.strikes(faults.hang):
            await _hang(receive, faults.hang_ms / 1000)
            raise Refused(503, "simulated_hang", "Nothing was done.")
        if not trouble.strikes(faults.lose_replies):
            await self._app(scope, receive, send)
            return

        async def lose(_: Message) -> None:
            """The reply goes nowhere."""

        await self._app(scope, receive, lose)
        # An answer that ends before its body does: the server closes the connection.
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-length", b"1000")],
            }
        )
        await send({"type": "http.response.body", "body": b"{", "more_body": True})


async def _hang(receive: Receive, seconds: float) -> None:
    """Waits until the caller has gone."""
    try:
        async with asyncio.timeout(seconds):
            while (await receive())["type"] != "http.disconnect":
                pass
    except TimeoutError:
        pass


# Events


class Courier:
    """Brings events to the webhook: each in a task of its own, again and again until a 2xx."""

    def __init__(
        self,
        settings: Settings,
        trouble: Trouble,
        durable: Callable[[], Awaitable[None]],
        delivered: Callable[[Event], None],
    ) -> None:
        """durable: returns when what events tell of is on disk. delivered: called after a 2xx."""
        self._url = settings.webhook_url
        self._secret = settings.need_webhook_secret()
        self._backoff_seconds = settings.event_backoff_seconds
        self._backoff_max_seconds = settings.event_backoff_max_seconds
        self._trouble = trouble
        self._durable = durable
        self._delivered = delivered
        # A slot is held only while sending, not while backing off: a failing event delays none.
        self._slots = asyncio.Semaphore(DELIVERIES_AT_ONCE)
        self._listening = asyncio.Event()  # somebody is, as far as we know
        self._listening.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._held: tuple[Event, asyncio.Event] | None = None
        try:
            self._client = Client(
                settings.webhook_url, timeout_seconds=settings.event_timeout_seconds
            )
        except ValueError as error:
            raise SettingsError(f"FLASHSALE_WEBHOOK_URL: {error}") from error

    def send(self, event: Event) -> None:
        self._start(self._deliver(event))
        if self._trouble.strikes(self._trouble.faults.duplicate_events):
            self._start(self._deliver(event))

    def _start(self, delivery: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(delivery)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, event: Event) -> None:
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

    async def _insist(self, event: Event) -> None:
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

    async def _dawdle(self, event: Event) -> None:
        faults = self._trouble.faults
        if self._trouble.strikes(faults.delay_events):
            await asyncio.sleep(faults.delay_ms / 1000)
        # One at a time: somebody has to be the one who overtakes.
        if self._trouble.strikes(faults.reorder_events) and self._held is None:
            overtaken = asyncio.Event()
            self._held = (event, overtaken)
            try:
                await asyncio.wait_for(overtaken.wait(), faults.delay_ms / 1000)
            except TimeoutError:
                pass
            finally:
                self._held = None

    async def _post(self, event: Event, knocks: bool) -> int:
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


# The provider


class Provider:
    """The sessions and what may happen to them.

    Methods decide, note and return without an await between, so two requests can't both capture. A
    caller answers after flush(), also if nothing was new: what it saw may not be on disk yet.
    """

    def __init__(self, settings: Settings, trouble: Trouble) -> None:
        """Replays the ledger and sends what was not delivered. Errors: LedgerError."""
        self._url = settings.provider_url.rstrip("/")
        self._sessions: dict[str, Session] = {}
        self._keys: dict[str, tuple[str, str]] = {}  # idempotency key -> verb, session_id
        self._undelivered: dict[str, Event] = {}
        self._statuses: Counter[Status] = Counter()
        self._captured_amounts: Counter[str] = Counter()
        self._refunded_amounts: Counter[str] = Counter()
        self._ledger = Ledger(Path(settings.provider_ledger))
        self.flush = self._ledger.flush
        for entry in self._ledger.replay():
            self._apply(entry)
        self._courier = Courier(settings, trouble, self.flush, self._acknowledge)
        for event in self._undelivered.values():
            self._courier.send(event)
        log.info(
            "ledger replayed: ledger=%s sessions=%d undelivered=%d",
            settings.provider_ledger,
            len(self._sessions),
            len(self._undelivered),
        )

    async def close(self) -> None:
        await self._courier.close()
        await self._ledger.close()

    def open(self, new: NewSession, key: str | None) -> tuple[Session, bool]:
        """A session, and whether it is new. Errors: idempotency_key_reused."""
        session_id = self._used(key, "open")
        if session_id is not None:
            known = self._sessions[session_id]
            if any(getattr(known, f) != getattr(new, f) for f in new.__struct_fields__):
                raise _key_reused()
            return known, False
        session_id = f"cs_{secrets.token_hex(12)}"
        self._note(
            Opened(
                at=_now(),
                session_id=session_id,
                payment_id=new.payment_id,
                order_id=new.order_id,
                amount=new.amount,
                currency=new.currency,
                expires_at=new.expires_at,
                key=key,
            )
        )
        log.info(
            "opened: session=%s payment=%s amount=%d currency=%s",
            session_id,
            new.payment_id,
            new.amount,
            new.currency,
        )
        return self._sessions[session_id], True

    def complete(self, session_id: str, outcome: Literal["succeed", "fail"]) -> Session:
        """The customer has paid, or could not. Errors: already_captured, _failed, _voided."""
        session = self.get(session_id)
        if session.status == "open":
            return self._move(session, "captured" if outcome == "succeed" else "failed")
        same = ("captured", "refunded") if outcome == "succeed" else ("failed",)
        if session.status not in same:
            raise _already(session)
        return session

    def void(self, session_id: str, key: str | None) -> Session:
        """No money will come; of a failed session that is true anyway. Errors: already_captured."""
        session = self.get(session_id)
        self._claim(key, "void", session_id)
        if session.status == "open":
            return self._move(session, "voided", key)
        if session.status in ("captured", "refunded"):
            raise _already(session)
        return session

    def refund(self, session_id: str, wanted: Refund, key: str | None) -> Session:
        """The money goes back, once, whatever the key. Errors: not_captured, wrong_amount."""
        session = self.get(session_id)
        self._claim(key, "refund", session_id)
        if session.status not in ("captured", "refunded"):
            raise Refused(409, "not_captured", f"The session is {session.status}.", session)
        if wanted.amount not in (None, session.amount) or (
            wanted.currency not in (None, session.currency)
        ):
            raise Refused(409, "wrong_amount", "That is not what was captured.", session)
        return self._move(session, "refunded", key) if session.status == "captured" else session

    def get(self, session_id: str) -> Session:
        """Errors: unknown_session."""
        session = self._sessions.get(session_id)
        if session is None:
            raise Refused(404, "unknown_session", "There is no such session.")
        return session

    def page(self, after: int, limit: int) -> Sessions:
        sessions = list(itertools.islice(self._sessions.values(), after, after + limit))
        end = after + len(sessions)
        return Sessions(self._totals(), sessions, end if end < len(self._sessions) else None)

    def _totals(self) -> Totals:
        count = self._statuses
        return Totals(
            sessions=len(self._sessions),
            open=count["open"],
            failed=count["failed"],
            voided=count["voided"],
            captured=count["captured"] + count["refunded"],
            refunded=count["refunded"],
            captured_amounts=dict(self._captured_amounts),
            refunded_amounts=dict(self._refunded_amounts),
            undelivered_events=len(self._undelivered),
        )

    def _used(self, key: str | None, verb: str) -> str | None:
        """The session that a key was used for."""
        if key is None or key not in self._keys:
            return None
        used_verb, session_id = self._keys[key]
        if used_verb != verb:
            raise _key_reused()
        return session_id

    def _claim(self, key: str | None, verb: str, session_id: str) -> None:
        if self._used(key, verb) not in (None, session_id):
            raise _key_reused()

    def _move(
        self,
        session: Session,
        to: Literal["captured", "failed", "voided", "refunded"],
        key: str | None = None,
    ) -> Session:
        moved = Moved(
            at=_now(),
            to=to,
            session_id=session.session_id,
            payment_id=session.payment_id,
            amount=session.amount,
            currency=session.currency,
            event_id=f"evt_{secrets.token_hex(12)}",
            key=key,
        )
        self._note(moved)
        self._courier.send(self._undelivered[moved.event_id])
        log.info(
            "%s: session=%s payment=%s amount=%d currency=%s",
            to,
            moved.session_id,
            moved.payment_id,
            moved.amount,
            moved.currency,
        )
        return self._sessions[session.session_id]

    def _note(self, entry: Entry) -> None:
        """Something happens, now."""
        self._apply(entry)
        self._ledger.write(entry)

    def _apply(self, entry: Entry) -> None:
        """What an entry, new or replayed, changes in memory."""
        match entry:
            case Opened():
                self._sessions[entry.session_id] = Session(
                    session_id=entry.session_id,
                    payment_id=entry.payment_id,
                    order_id=entry.order_id,
                    status="open",
                    amount=entry.amount,
                    currency=entry.currency,
                    checkout_url=f"{self._url}/sessions/{entry.session_id}",
                    expires_at=entry.expires_at,
                    created_at=entry.at,
                )
                self._statuses["open"] += 1
                self._remember(entry.key, "open", entry.session_id)
            case Moved():
                session = self._sessions[entry.session_id]
                times: dict[str, Any] = {f"{entry.to}_at": entry.at}
                self._sessions[entry.session_id] = replace(session, status=entry.to, **times)
                self._statuses[session.status] -= 1
                self._statuses[entry.to] += 1
                if entry.to == "captured":
                    self._captured_amounts[entry.currency] += entry.amount
                elif entry.to == "refunded":
                    self._refunded_amounts[entry.currency] += entry.amount
                self._undelivered[entry.event_id] = Event(
                    event_id=entry.event_id,
                    type=_EVENT_TYPES[entry.to],
                    session_id=entry.session_id,
                    payment_id=entry.payment_id,
                    amount=entry.amount,
                    currency=entry.currency,
                    occurred_at=entry.at,
                )
                verb = {"voided": "void", "refunded": "refund"}.get(entry.to, "")
                self._remember(entry.key, verb, entry.session_id)
            case Delivered():
                self._undelivered.pop(entry.event_id, None)

    def _remember(self, key: str | None, verb: str, session_id: str) -> None:
        if key is not None:
            self._keys[key] = (verb, session_id)

    def _acknowledge(self, event: Event) -> None:
        if event.event_id in self._undelivered:  # else its duplicate was first
            self._note(Delivered(at=_now(), event_id=event.event_id))


def _now() -> datetime:
    return datetime.now(UTC)


def _already(session: Session) -> Refused:
    status = "captured" if session.status == "refunded" else session.status
    return Refused(409, f"already_{status}", f"The session is {session.status}.", session)


def _key_reused() -> Refused:
    return Refused(
        409, "idempotency_key_reused", "This Idempotency-Key was used for something else."
    )


# HTTP

Connection = Request[Any, Any, Any]


class _Key(Struct, frozen=True):
    value: Annotated[str, Meta(min_length=1, max_length=255, pattern=r"^[ -~]+\Z")] | None


class _Page(Struct, frozen=True, forbid_unknown_fields=True):
    after: Annotated[int, Meta(ge=0, le=2**31)] = 0
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


def _provider(request: Connection) -> Provider:
    return cast(Provider, request.app.state.provider)


def _trouble(request: Connection) -> Trouble:
    return cast(Trouble, request.app.state.trouble)


def _session_id(request: Connection) -> str:
    return cast(str, request.path_params["session_id"])


def _key(request: Connection) -> str | None:
    return msgspec.convert({"value": request.headers.get("Idempotency-Key")}, _Key).value


async def _body(request: Connection, kind: type[T]) -> T:
    """The body, whatever its content type says: `curl -d` says it is a form."""
    return msgspec.json.decode(await request.body() or b"{}", type=kind)


@post("/sessions")
async def open_session(request: Connection) -> Response[Session]:
    new = await _body(request, NewSession)
    session, is_new = _provider(request).open(new, _key(request))
    await _provider(request).flush()
    return Response(session, status_code=201 if is_new else 200)


@post("/sessions/{session_id:str}/void", status_code=200)
async def void_session(request: Connection) -> Session:
    await _body(request, Void)
    session = _provider(request).void(_session_id(request), _key(request))
    await _provider(request).flush()
    return session


@post("/sessions/{session_id:str}/refund", status_code=200)
async def refund_session(request: Connection) -> Session:
    wanted = await _body(request, Refund)
    session = _provider(request).refund(_session_id(request), wanted, _key(request))
    await _provider(request).flush()
    return session


@post("/sessions/{session_id:str}/complete", status_code=200)
async def complete_session(request: Connection) -> Session:
    completion = await _body(request, Completion)
    session = _provider(request).complete(_session_id(request), completion.outcome)
    await _provider(request).flush()
    return session


@get("/sessions/{session_id:str}")
async def get_session(request: Connection) -> Session:
    session = _provider(request).get(_session_id(request))
    await _provider(request).flush()
    if session.status != "open":
        return session
    how = f"""curl -X POST {session.checkout_url}/complete -d '{{"outcome": "succeed"}}'"""
    return replace(session, how_to_pay=how)


@get("/sessions")
async def list_sessions(request: Connection) -> Sessions:
    wanted = msgspec.convert(dict(request.query_params), _Page, strict=False)
    page = _provider(request).page(wanted.after, wanted.limit)
    await _provider(request).flush()
    return page


@get("/faults")
async def get_faults(request: Connection) -> Faults:
    return _trouble(request).faults


@put("/faults")
async def put_faults(request: Connection) -> Faults:
    """Replaces all faults: what is not named does not happen any more. `{}` is a good day."""
    faults = await _body(request, Faults)
    _trouble(request).change(faults)
    log.info("faults: %s", faults)
    return faults


@get("/health/live")
async def live() -> dict[str, str]:
    return {"status": "ok"}


@get("/health/ready")
async def ready(request: Connection) -> dict[str, str]:
    await _provider(request).flush()
    return {"status": "ok"}


def _answer(request: Connection, error: Exception) -> Response[Problem]:
    match error:
        case Refused():
            refused = error
        case msgspec.ValidationError():
            refused = Refused(422, "bad_value", str(error))
        case msgspec.DecodeError() | UnicodeError() | RecursionError():
            refused = Refused(400, "malformed_body", "The body is not JSON in UTF-8.")
        case HTTPException() if error.status_code < 500:
            phrase = HTTPStatus(error.status_code).phrase
            refused = Refused(error.status_code, phrase.lower().replace(" ", "_"), phrase)
        case LedgerError():
            refused = Refused(503, "ledger_unavailable", "The ledger can't be written.")
        case _:
            log.error("unexpected error: path=%s", request.url.path, exc_info=error)
            refused = Refused(500, "internal_error", "It is in the log.")
    problem = Problem(
        type=f"urn:flashsale:problem:{refused.code}",
        title=HTTPStatus(refused.status).phrase,
        status=refused.status,
        code=refused.code,
        detail=refused.detail,
        session=refused.session,
    )
    return Response(problem, status_code=refused.status, media_type="application/problem+json")


def create_app(settings: Settings | None = None) -> Litestar:
    """The provider as an ASGI application, for one process.

    settings: None reads the environment. Errors: SettingsError; at startup LedgerError.
    """
    settings = settings or Settings.from_env()
    settings.need_webhook_secret()
    try:
        faults = msgspec.json.decode(settings.faults, type=Faults)
    except msgspec.DecodeError as error:
        raise SettingsError(f"FLASHSALE_FAULTS: {error}") from error
    trouble = Trouble(faults, settings.fault_seed)

    @asynccontextmanager
    async def run(app: Litestar) -> AsyncIterator[None]:
        provider = Provider(settings, trouble)
        app.state.update({"provider": provider, "trouble": trouble})
        try:
            yield
        finally:
            await provider.close()

    def unreliable(app: ASGIApp) -> ASGIApp:
        return Unreliable(app, trouble)

    calls = Router(
        "/", route_handlers=[open_session, void_session, refund_session], middleware=[unreliable]
    )
    return Litestar(
        route_handlers=[
            calls,
            complete_session,
            get_session,
            list_sessions,
            get_faults,
            put_faults,
            live,
            ready,
        ],
        exception_handlers={Exception: _answer},
        lifespan=[run],
        request_max_body_size=settings.max_body_bytes,
        openapi_config=None,
        logging_config=None,
    )
