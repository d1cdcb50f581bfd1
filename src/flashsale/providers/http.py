"""The client of `flashsale provider`: its calls over HTTP, and its signed events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import msgspec

from flashsale import signature
from flashsale.http_client import HttpAnswer, HttpClient, NoAnswer
from flashsale.models import PaymentEvent
from flashsale.providers.interface import (
    CheckoutSession,
    ProviderRefused,
    ProviderUnavailable,
    SessionCaptured,
    SessionRefunded,
    SessionVoided,
)
from flashsale.settings import Settings, SettingsError

T = TypeVar("T")


def create(settings: Settings) -> HttpProvider:
    """The provider at provider_url."""
    return HttpProvider(
        settings.provider_url,
        timeout_seconds=settings.provider_timeout_seconds,
        connections=settings.job_concurrency,
        webhook_secret=settings.webhook_secret,
        tolerance_seconds=settings.webhook_tolerance_seconds,
    )


class HttpProvider:
    """The provider of `flashsale provider`, over HTTP. Use as an async context manager."""

    def __init__(
        self,
        url: str,
        *,
        timeout_seconds: float,
        connections: int = 20,
        webhook_secret: str = "",
        tolerance_seconds: float = 300,
    ) -> None:
        """timeout_seconds bounds a call, once it is one of the `connections` under way at once.

        webhook_secret and tolerance_seconds are for its events: with which secret they are signed,
        and how far their time may be off. Errors: SettingsError for a bad URL.
        """
        try:
            self._client = HttpClient(url, timeout_seconds=timeout_seconds)
        except ValueError as error:
            raise SettingsError(f"FLASHSALE_PROVIDER_URL: {error}") from error
        self._slots = asyncio.Semaphore(connections)
        self._webhook_secret = webhook_secret
        self._tolerance_seconds = tolerance_seconds

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
        description: str | None,
        idempotency_key: str,
    ) -> CheckoutSession:
        """As of PaymentProvider."""
        body: dict[str, Any] = {
            "payment_id": payment_id,
            "order_id": order_id,
            "amount": amount,
            "currency": currency,
            "expires_at": expires_at,
        }
        if description is not None:  # a provider of an older release does not know it
            body["description"] = description
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
        answer = await self._call(_path(session_id, "refund"), body, idempotency_key)
        if answer.status == 409 and _decoded(answer, _Refusal).code == "already_refunded":
            return SessionRefunded()  # by somebody at the provider
        _session(answer, _Ended)
        return SessionRefunded()

    async def read_event(self, headers: Mapping[str, str], body: bytes) -> PaymentEvent:
        """As of PaymentProvider."""
        signature.verify(
            self._webhook_secret,
            headers.get(signature.HEADER.lower()),
            body,
            time.time(),
            self._tolerance_seconds,
        )
        return event_of(body)

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


def event_of(body: bytes) -> PaymentEvent:
    """The event in a body, without those fields that are missing or have a wrong form.

    Its sender is the provider, so it may be about money: it is never refused for its form.
    """
    with suppress(msgspec.DecodeError, UnicodeError, RecursionError):
        return msgspec.json.decode(body, type=PaymentEvent)
    try:
        given = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return PaymentEvent()
    if not isinstance(given, dict):
        return PaymentEvent()
    if type(given.get("payment_id")) is int:
        given["payment_id"] = str(given["payment_id"])
    fields = {name: given[name] for name in PaymentEvent.__struct_fields__ if name in given}
    return msgspec.convert({k: v for k, v in fields.items() if _is_well(k, v)}, PaymentEvent)


def _is_well(name: str, value: object) -> bool:
    try:
        msgspec.convert({name: value}, PaymentEvent)
    except (msgspec.ValidationError, ValueError):
        return False
    return True
