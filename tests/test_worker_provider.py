"""HttpProvider against the simulated provider, with and without faults."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest
from msgspec.structs import replace

from flashsale import signature
from flashsale.processes import free_port
from flashsale.providers.http import HttpProvider
from flashsale.providers.interface import (
    BadSignature,
    CheckoutSession,
    PaymentEvent,
    PaymentProvider,
    ProviderRefused,
    ProviderUnavailable,
    SessionCaptured,
    SessionRefunded,
    SessionVoided,
)
from simulator_support import SECRET, Stage, staged

T = TypeVar("T")
EXPIRES_AT = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(tmp_path) as stage:
        yield await stage.start()


@pytest.fixture
async def provider(stage: Stage) -> AsyncIterator[PaymentProvider]:
    async with HttpProvider(stage.url, timeout_seconds=5) as provider:
        yield provider


async def opened(provider: PaymentProvider, payment_id: str = "7") -> CheckoutSession:
    return await provider.open_session(
        payment_id, "8", 1000, "EUR", EXPIRES_AT, "Shoe", f"payment-{payment_id}-open"
    )


async def pay(stage: Stage, session: CheckoutSession) -> None:
    response = await stage.post(f"/sessions/{session.session_id}/complete", {"outcome": "succeed"})
    assert response.status_code == 200


async def test_session_is_opened_with_what_it_is_for(
    stage: Stage, provider: PaymentProvider
) -> None:
    session = await opened(provider)
    assert session.checkout_url == f"{stage.url}/sessions/{session.session_id}"
    shown = (await stage.client.get(session.checkout_url)).json()
    assert (shown["payment_id"], shown["order_id"], shown["amount"]) == ("7", "8", 1000)
    assert shown["expires_at"] == "2030-01-01T00:00:00Z"
    assert shown["description"] == "Shoe"
    # and asking again finds it
    assert await opened(provider) == session


async def test_open_session_is_voided(provider: PaymentProvider) -> None:
    session = await opened(provider)
    for _ in range(2):
        assert await provider.void_session(session.session_id, "payment-7-void") == SessionVoided()


async def test_voiding_a_captured_session_returns_the_money_that_came(
    stage: Stage, provider: PaymentProvider
) -> None:
    session = await opened(provider)
    await pay(stage, session)
    voided = await provider.void_session(session.session_id, "payment-7-void")
    shown = (await stage.client.get(session.checkout_url)).json()
    captured_at = datetime.fromisoformat(shown["captured_at"])
    assert voided == SessionCaptured(1000, "EUR", captured_at)


async def test_failed_session_counts_as_voided(stage: Stage, provider: PaymentProvider) -> None:
    session = await opened(provider)
    await stage.post(f"/sessions/{session.session_id}/complete", {"outcome": "fail"})
    assert await provider.void_session(session.session_id, "payment-7-void") == SessionVoided()


async def test_captured_session_is_refunded_once(stage: Stage, provider: PaymentProvider) -> None:
    session = await opened(provider)
    await pay(stage, session)
    for _ in range(2):
        refunded = await provider.refund_session(
            session.session_id, 1000, "EUR", "payment-7-refund"
        )
        assert refunded == SessionRefunded()
    assert stage.moves() == [("captured", "7"), ("refunded", "7")]


async def test_a_refund_that_somebody_made_at_the_provider_counts(
    stage: Stage, provider: PaymentProvider
) -> None:
    session = await opened(provider)
    await pay(stage, session)
    await stage.post(f"/sessions/{session.session_id}/refund")
    refunded = await provider.refund_session(session.session_id, 1000, "EUR", "payment-7-refund")
    assert refunded == SessionRefunded()
    assert stage.moves() == [("captured", "7"), ("refunded", "7")]


async def test_a_refusal_of_the_provider_is_not_retried(
    stage: Stage, provider: PaymentProvider
) -> None:
    session = await opened(provider)
    with pytest.raises(ProviderRefused) as refused:
        await provider.refund_session(session.session_id, 1000, "EUR", "payment-7-refund")
    assert refused.value.code == "not_captured"
    with pytest.raises(ProviderRefused, match="unknown_session"):
        await provider.void_session("no such session", "payment-9-void")
    with pytest.raises(ProviderRefused, match="idempotency_key_reused"):
        await provider.open_session("7", "8", 1, "EUR", EXPIRES_AT, None, "payment-7-open")


@pytest.mark.parametrize("fault", ["fail", "lose_replies"])
async def test_call_that_may_have_failed_is_safe_to_repeat(
    stage: Stage, provider: PaymentProvider, fault: str
) -> None:
    async def insist(call: Callable[[], Awaitable[T]]) -> T:
        """Calls with the fault first, then without it."""
        await stage.faults(**{fault: 1})
        for _ in range(3):
            with pytest.raises(ProviderUnavailable):
                await call()
        await stage.faults()
        return await call()

    session = await insist(lambda: opened(provider, "7"))
    other = await insist(lambda: opened(provider, "8"))
    assert (
        await insist(lambda: provider.void_session(other.session_id, "void-8")) == SessionVoided()
    )
    await pay(stage, session)
    refund = partial(provider.refund_session, session.session_id, 1000, "EUR", "refund-7")
    assert await insist(refund) == SessionRefunded()
    assert stage.moves() == [("voided", "8"), ("captured", "7"), ("refunded", "7")]
    assert (await stage.totals())["sessions"] == 2


async def test_lost_reply_of_a_void_that_came_too_late(
    stage: Stage, provider: PaymentProvider
) -> None:
    session = await opened(provider)
    await pay(stage, session)
    await stage.faults(lose_replies=1)
    with pytest.raises(ProviderUnavailable):
        await provider.void_session(session.session_id, "payment-7-void")


async def test_hanging_provider_is_unavailable_in_time(stage: Stage) -> None:
    await stage.faults(hang=1)
    async with HttpProvider(stage.url, timeout_seconds=0.2) as provider:
        async with asyncio.timeout(5):
            with pytest.raises(ProviderUnavailable):
                await opened(provider)
        # and there is nothing left of it
        await stage.faults()
        await opened(provider)


async def test_slow_provider_is_waited_for(stage: Stage, provider: PaymentProvider) -> None:
    await stage.faults(latency_ms=300)
    await opened(provider)


async def test_an_absent_provider_is_unavailable() -> None:
    async with HttpProvider(f"http://127.0.0.1:{free_port()}", timeout_seconds=1) as provider:
        with pytest.raises(ProviderUnavailable):
            await opened(provider)


@pytest.mark.parametrize("answer", [b"", b"<html>", b"{}", b'{"session_id": 1}', b"\xff"])
async def test_an_invalid_answer_is_no_answer(answer: bytes) -> None:
    # given a proxy in between that says 200 to everything
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(answer), answer))
        await writer.drain()
        writer.close()

    port = free_port()
    async with (
        await asyncio.start_server(serve, "127.0.0.1", port),
        HttpProvider(f"http://127.0.0.1:{port}", timeout_seconds=5) as provider,
    ):
        with pytest.raises(ProviderUnavailable):
            await opened(provider)


async def test_more_calls_than_connections_all_get_through(stage: Stage) -> None:
    async with HttpProvider(stage.url, timeout_seconds=10, connections=4) as provider:
        sessions = await asyncio.gather(*(opened(provider, str(n)) for n in range(100)))
    assert len({s.session_id for s in sessions}) == 100


# Events

GENUINE = {
    "event_id": "e1",
    "type": "payment.failed",
    "session_id": "s1",
    "payment_id": "7",
    "amount": 1000,
    "currency": "EUR",
    "occurred_at": "2030-01-01T00:00:00Z",
    "payable": True,
}
READ = PaymentEvent(
    "e1", "payment.failed", "s1", "7", 1000, "EUR", datetime(2030, 1, 1, tzinfo=UTC), True
)


async def read(body: bytes, secret: str = SECRET, age_seconds: int = 0) -> PaymentEvent:
    signed = signature.sign(secret, body, int(time.time()) - age_seconds)
    async with HttpProvider("http://nowhere", timeout_seconds=1, webhook_secret=SECRET) as provider:
        return await provider.read_event({"flashsale-signature": signed}, body)


async def test_an_event_is_read_as_it_was_sent() -> None:
    assert await read(msgspec.json.encode(GENUINE | {"more": [1]})) == READ
    number = await read(msgspec.json.encode(GENUINE | {"payment_id": 7}))
    assert number == READ


@pytest.mark.parametrize(
    "wrong",
    [
        {"event_id": ""},
        {"event_id": "x" * 256},
        {"type": None},
        {"session_id": "a\0"},
        {"payment_id": ["7"]},
        {"payment_id": True},
        {"amount": -1},
        {"amount": "5"},
        {"amount": 2**70},
        {"currency": "eur"},
        {"occurred_at": "2030-01-01T00:00:00"},
        {"occurred_at": "9999-01-01T00:00:00Z"},
        {"payable": "yes"},
    ],
    ids=str,
)
async def test_what_is_wrong_in_a_genuine_event_is_left_out_and_the_rest_is_known(
    wrong: dict[str, object],
) -> None:
    (name,) = wrong
    expected = replace(READ, **{name: getattr(PaymentEvent(), name)})
    assert await read(msgspec.json.encode(GENUINE | wrong)) == expected


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[]", b"7", b"null", b"[" * 5000])
async def test_of_a_genuine_body_that_is_no_event_nothing_is_known(body: bytes) -> None:
    assert await read(body) == PaymentEvent()


async def test_nothing_is_read_of_what_the_provider_did_not_sign() -> None:
    body = msgspec.json.encode(GENUINE)
    for secret, age_seconds in (("another", 0), (SECRET, 301)):
        with pytest.raises(BadSignature):
            await read(body, secret, age_seconds)
    async with HttpProvider("http://nowhere", timeout_seconds=1, webhook_secret=SECRET) as provider:
        with pytest.raises(BadSignature):
            await provider.read_event({}, body)
