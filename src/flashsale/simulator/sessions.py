"""The sessions of the simulated provider, and what may happen to them.

    open ──▶ captured ──▶ refunded      A session is one attempt to pay: a failed one stays failed,
      ├────▶ failed                     the next attempt is a new session. With the fault
      └────▶ voided                     decline_keeps_open a session survives a failure. expires_at
                                        is only for show: the void makes late money impossible.

Sessions and undelivered events in memory are what the lines of the ledger add up to, so a start
after a crash is a replay. One process: it holds a lock on the ledger, and decides between two
awaits, so it needs no other lock.
"""

from __future__ import annotations

import itertools
import logging
import secrets
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from msgspec.structs import replace

from flashsale.currencies import DECIMALS
from flashsale.settings import Settings
from flashsale.simulator.courier import Courier
from flashsale.simulator.faults import FaultDice
from flashsale.simulator.ledger import Delivered, Entry, Ledger, Moved, Opened
from flashsale.simulator.messages import (
    CallRefused,
    EventType,
    NewSession,
    PaymentSession,
    ProviderEvent,
    RefundCall,
    SessionPage,
    Status,
    Totals,
)

log = logging.getLogger("flashsale.provider")

_EVENT_TYPES: dict[Status, EventType] = {
    "captured": "payment.succeeded",
    "failed": "payment.failed",
    "voided": "payment.voided",
    "refunded": "payment.refunded",
}

_TERMS = ("payment_id", "order_id", "amount", "currency", "expires_at")
"""What a repeated call has to say again. The description is only shown, and a worker of another
release may send none."""


class SimulatedProvider:
    """The sessions and what may happen to them.

    Methods decide, note and return without an await between, so two requests can't both capture. A
    caller answers after flush(), also if nothing was new: what it saw may not be on disk yet.
    """

    def __init__(self, settings: Settings, dice: FaultDice) -> None:
        """Replays the ledger and sends what was not delivered. Errors: LedgerError."""
        self._url = settings.provider_url.rstrip("/")
        self._dice = dice
        self._sessions: dict[str, PaymentSession] = {}
        self._keys: dict[str, tuple[str, str]] = {}  # idempotency key -> verb, session_id
        self._undelivered: dict[str, ProviderEvent] = {}
        self._statuses: Counter[Status] = Counter()
        self._captured_amounts: Counter[str] = Counter()
        self._refunded_amounts: Counter[str] = Counter()
        self._ledger = Ledger(Path(settings.provider_ledger))
        self.flush = self._ledger.flush
        for entry in self._ledger.replay():
            self._apply(entry)
        self._courier = Courier(settings, dice, self.flush, self._acknowledge)
        for event in self._undelivered.values():
            self._courier.send(event)
        log.info(
            "ledger replayed: ledger=%s sessions=%d undelivered=%d",
            settings.provider_ledger,
            len(self._sessions),
            len(self._undelivered),
        )

    async def close(self) -> None:
        """Stops delivering, and closes the ledger."""
        await self._courier.close()
        await self._ledger.close()

    def open(self, new: NewSession, key: str | None) -> tuple[PaymentSession, bool]:
        """A session, and whether it is new. Errors: idempotency_key_reused, unknown_currency."""
        session_id = self._used(key, "open")
        if session_id is not None:
            known = self._sessions[session_id]
            if any(getattr(known, f) != getattr(new, f) for f in _TERMS):
                raise _key_reused()
            return known, False
        if new.currency not in DECIMALS:
            raise CallRefused(422, "unknown_currency", f"ISO 4217 has no {new.currency}.")
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
                description=new.description,
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

    def complete(self, session_id: str, outcome: Literal["succeed", "fail"]) -> PaymentSession:
        """The customer has paid, or could not. Errors: already_captured, _failed, _voided."""
        session = self.get(session_id)
        if session.status == "open":
            if outcome == "succeed":
                return self._move(session, "captured")
            keeps_open = self._dice.strikes(self._dice.faults.decline_keeps_open)
            return self._move(session, "failed", payable=keeps_open)
        same = ("captured", "refunded") if outcome == "succeed" else ("failed",)
        if session.status not in same:
            raise _already(session)
        return session

    def void(self, session_id: str, key: str | None) -> PaymentSession:
        """Voids a session that has not ended, so that no money comes. Errors: already_captured."""
        session = self.get(session_id)
        self._claim(key, "void", session_id)
        if session.status == "open":
            return self._move(session, "voided", key)
        if session.status in ("captured", "refunded"):
            raise _already(session)
        return session

    def refund(self, session_id: str, wanted: RefundCall, key: str | None) -> PaymentSession:
        """Refunds the money, once. Without a key it is somebody at the provider who does so.

        Errors: not_captured, wrong_amount, already_refunded (not by the call with this key).
        """
        session = self.get(session_id)
        repeated = key is not None and self._used(key, "refund") == session_id
        self._claim(key, "refund", session_id)
        if session.status not in ("captured", "refunded"):
            raise CallRefused(409, "not_captured", f"The session is {session.status}.", session)
        if wanted.amount not in (None, session.amount) or (
            wanted.currency not in (None, session.currency)
        ):
            raise CallRefused(409, "wrong_amount", "That is not what was captured.", session)
        if session.status == "captured":
            return self._move(session, "refunded", key)
        if not repeated:
            raise CallRefused(409, "already_refunded", "The money has gone back.", session)
        return session

    def get(self, session_id: str) -> PaymentSession:
        """The session with this id. Errors: unknown_session."""
        session = self._sessions.get(session_id)
        if session is None:
            raise CallRefused(404, "unknown_session", "There is no such session.")
        return session

    def page(self, after: int, limit: int) -> SessionPage:
        """Sessions in the order of their opening; after: how many to skip."""
        sessions = list(itertools.islice(self._sessions.values(), after, after + limit))
        end = after + len(sessions)
        return SessionPage(self._totals(), sessions, end if end < len(self._sessions) else None)

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
        session: PaymentSession,
        to: Literal["captured", "failed", "voided", "refunded"],
        key: str | None = None,
        *,
        payable: bool = False,
    ) -> PaymentSession:
        moved = Moved(
            at=_now(),
            to=to,
            session_id=session.session_id,
            payment_id=session.payment_id,
            amount=session.amount,
            currency=session.currency,
            event_id=f"evt_{secrets.token_hex(12)}",
            key=key,
            payable=payable,
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
        """Applies an entry in memory and writes it to the ledger."""
        self._apply(entry)
        self._ledger.write(entry)

    def _apply(self, entry: Entry) -> None:
        """Applies an entry, new or replayed, in memory."""
        match entry:
            case Opened():
                self._sessions[entry.session_id] = PaymentSession(
                    session_id=entry.session_id,
                    payment_id=entry.payment_id,
                    order_id=entry.order_id,
                    status="open",
                    amount=entry.amount,
                    currency=entry.currency,
                    checkout_url=f"{self._url}/sessions/{entry.session_id}",
                    expires_at=entry.expires_at,
                    created_at=entry.at,
                    description=entry.description,
                )
                self._statuses["open"] += 1
                self._remember(entry.key, "open", entry.session_id)
            case Moved():
                session = self._sessions[entry.session_id]
                times: dict[str, Any] = {f"{entry.to}_at": entry.at}
                status: Status = "open" if entry.payable else entry.to
                self._sessions[entry.session_id] = replace(session, status=status, **times)
                self._statuses[session.status] -= 1
                self._statuses[status] += 1
                if entry.to == "captured":
                    self._captured_amounts[entry.currency] += entry.amount
                elif entry.to == "refunded":
                    self._refunded_amounts[entry.currency] += entry.amount
                self._undelivered[entry.event_id] = ProviderEvent(
                    event_id=entry.event_id,
                    type=_EVENT_TYPES[entry.to],
                    session_id=entry.session_id,
                    payment_id=entry.payment_id,
                    amount=entry.amount,
                    currency=entry.currency,
                    occurred_at=entry.at,
                    payable=entry.payable,
                )
                verb = {"voided": "void", "refunded": "refund"}.get(entry.to, "")
                self._remember(entry.key, verb, entry.session_id)
            case Delivered():
                self._undelivered.pop(entry.event_id, None)

    def _remember(self, key: str | None, verb: str, session_id: str) -> None:
        if key is not None:
            self._keys[key] = (verb, session_id)

    def _acknowledge(self, event: ProviderEvent) -> None:
        if event.event_id in self._undelivered:  # else a duplicate of it was delivered first
            self._note(Delivered(at=_now(), event_id=event.event_id))


def _now() -> datetime:
    return datetime.now(UTC)


def _already(session: PaymentSession) -> CallRefused:
    status = "captured" if session.status == "refunded" else session.status
    return CallRefused(409, f"already_{status}", f"The session is {session.status}.", session)


def _key_reused() -> CallRefused:
    return CallRefused(
        409, "idempotency_key_reused", "This Idempotency-Key was used for something else."
    )
