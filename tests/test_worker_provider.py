"""HttpProvider against the simulated provider, with and without faults."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from flashsale.processes import free_port
from flashsale.worker.provider import (
    CheckoutSession,
    HttpProvider,
    PaymentProvider,
    ProviderRefused,
    ProviderUnavailable,
    SessionCaptured,
    SessionRefunded,
    SessionVoided,
)
from simulator_support import Stage, staged

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
        payment_id, "8", 1000, "EUR", EXPIRES_AT, f"payment-{payment_id}-open"
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
    assert voided == SessionCaptured(1000, "EUR")


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
        await provider.open_session("7", "8", 1, "EUR", EXPIRES_AT, "payment-7-open")


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
