"""The payment provider: the interface that a real one has to implement, and a client over HTTP.

Every call is safe to repeat with the same idempotency key. After ProviderUnavailable it is unknown
whether the call took effect, so it has to be repeated.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from types import TracebackType
from typing import Protocol, Self, TypeVar
from urllib.parse import quote

import msgspec

from flashsale.http_client import HttpAnswer, HttpClient, NoAnswer

T = TypeVar("T")


class CheckoutSession(msgspec.Struct, frozen=True):
    """A payment that the customer can make at checkout_url."""

    session_id: str
    checkout_url: str


class SessionVoided(msgspec.Struct, frozen=True):
    """The session is closed: no money has come, and none will."""


class SessionCaptured(msgspec.Struct, frozen=True):
    """The void came too late: the money has come. amount is in minor units of currency."""

    amount: int
    currency: str


class SessionRefunded(msgspec.Struct, frozen=True):
    """All the money of the session has been refunded, once."""


class ProviderUnavailable(Exception):  # noqa: N818 - an expected state, not a fault of ours
    """There is no usable answer, and the call may have had its effect: repeat it with its key."""


class ProviderRefused(Exception):  # noqa: N818 - the words are clear
    """The provider has refused the call; repeating it unchanged won't help."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}" if detail else code)
        self.code = code


class PaymentProvider(Protocol):
    """What the worker needs of a provider. Errors of each: ProviderUnavailable, ProviderRefused."""

    async def open_session(
        self,
        payment_id: str,
        order_id: str,
        amount: int,
        currency: str,
        expires_at: datetime,
        idempotency_key: str,
    ) -> CheckoutSession:
        """Opens a session. amount is in minor units of currency."""
        ...

    async def void_session(
        self, session_id: str, idempotency_key: str
    ) -> SessionVoided | SessionCaptured:
        """Voids a session, so that no money can come, or finds that the money has come."""
        ...

    async def refund_session(
        self, session_id: str, amount: int, currency: str, idempotency_key: str
    ) -> SessionRefunded:
        """Sends all the money back."""
        ...


class HttpProvider:
    """The provider of `flashsale provider`, over HTTP. Use as an async context manager."""

    def __init__(self, url: str, *, timeout_seconds: float, connections: int = 20) -> None:
        """timeout_seconds bounds a call, once it is one of the `connections` under way at once."""
        self._client = HttpClient(url, timeout_seconds=timeout_seconds)
        self._slots = asyncio.Semaphore(connections)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._client.close()

    async def open_session(
        self,
        payment_id: str,
        order_id: str,
        amount: int,
        currency: str,
        expires_at: datetime,
        idempotency_key: str,
    ) -> CheckoutSession:
        """As of PaymentProvider."""
        body = {
            "payment_id": payment_id,
            "order_id": order_id,
            "amount": amount,
            "currency": currency,
            "expires_at": expires_at,
        }
        return _session(await self._call("/sessions", body, idempotency_key), CheckoutSession)

    async def void_session(
        self, session_id: str, idempotency_key: str
    ) -> SessionVoided | SessionCaptured:
        """As of PaymentProvider."""
        answer = await self._call(_path(session_id, "void"), {}, idempotency_key)
        if answer.status == 409:
            refusal = _decoded(answer, _Refusal)
            if refusal.code == "already_captured" and refusal.session is not None:
                return refusal.session
        _session(answer, _Ended)
        return SessionVoided()

    async def refund_session(
        self, session_id: str, amount: int, currency: str, idempotency_key: str
    ) -> SessionRefunded:
        """As of PaymentProvider."""
        body = {"amount": amount, "currency": currency}
        _session(await self._call(_path(session_id, "refund"), body, idempotency_key), _Ended)
        return SessionRefunded()

    async def _call(self, path: str, body: object, idempotency_key: str) -> HttpAnswer:
        headers = {"Idempotency-Key": idempotency_key}
        try:
            async with self._slots:
                answer = await self._client.post(path, msgspec.json.encode(body), headers)
        except NoAnswer as error:
            raise ProviderUnavailable(f"{path}: {error}") from error
        if answer.status >= 500 or answer.status in (408, 425, 429):
            raise ProviderUnavailable(f"{path}: status {answer.status}")
        return answer


class _Ended(msgspec.Struct, frozen=True):
    session_id: str


class _Refusal(msgspec.Struct, frozen=True):
    code: str = "refused"
    detail: str = ""
    session: SessionCaptured | None = None


def _path(session_id: str, verb: str) -> str:
    return f"/sessions/{quote(session_id, safe='')}/{verb}"


def _session(answer: HttpAnswer, kind: type[T]) -> T:
    if not 200 <= answer.status < 300:
        try:
            refusal = msgspec.json.decode(answer.body, type=_Refusal)
        except (msgspec.DecodeError, UnicodeError):
            refusal = _Refusal(f"status_{answer.status}")
        raise ProviderRefused(refusal.code, refusal.detail[:500])
    return _decoded(answer, kind)


def _decoded(answer: HttpAnswer, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(answer.body, type=kind)
    except (msgspec.DecodeError, UnicodeError) as error:
        # The answer is not the provider's, but of a server in between.
        raise ProviderUnavailable(f"status {answer.status}, but not its answer: {error}") from error
