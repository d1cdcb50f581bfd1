"""The HTTP service in this process, on the test's database, and helpers for its tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from urllib.parse import unquote

import httpx
import msgspec
import pytest
from litestar import Litestar

from flashsale import signature
from flashsale.api.app import create_app
from flashsale.api.problems import PROBLEM_JSON
from flashsale.settings import Settings

SECRET = "a secret of the tests"
NEW_ITEM = {
    "sku": "shoe",
    "name": "Shoe",
    "price": 1000,
    "currency": "EUR",
    "stock": 1,
    "hold_seconds": 60,
}


def settings(database_url: str, **changes: Any) -> Settings:
    values = {"sse_poll_seconds": 0.05} | changes
    return Settings(database_url=database_url, webhook_secret=SECRET, **values)


class Api:
    """A client that can act as any customer."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def __call__(
        self, method: str, path: str, customer: str | None = None, **kwargs: Any
    ) -> httpx.Response:
        headers = {"X-Customer-Id": customer} if customer is not None else {}
        headers |= kwargs.pop("headers", {})
        return await self.client.request(method, path, headers=headers, **kwargs)

    async def item(self, **terms: Any) -> dict[str, Any]:
        response = await self("POST", "/items", json=NEW_ITEM | terms)
        assert response.status_code == 201, response.text
        return response.json()  # type: ignore[no-any-return]

    async def order(self, item: dict[str, Any], customer: str, **kwargs: Any) -> httpx.Response:
        return await self("POST", f"/items/{item['item_id']}/orders", customer, **kwargs)

    async def event(self, body: dict[str, Any] | bytes, at: float | None = None) -> httpx.Response:
        raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
        signed = signature.sign(SECRET, raw, int(time.time() if at is None else at))
        return await self(
            "POST",
            "/webhooks/payments",
            content=raw,
            headers={signature.HEADER: signed, "Content-Type": "application/json"},
        )

    async def pay(self, order: dict[str, Any], event_id: str = "e1") -> httpx.Response:
        return await self.event(success(order, event_id))


class LocalApi(Api):
    """The same for an app that runs in this process, so that a test may look into it."""

    def __init__(self, client: httpx.AsyncClient, app: Litestar) -> None:
        super().__init__(client)
        self.app = app


def success(order: dict[str, Any], event_id: str = "e1") -> dict[str, Any]:
    """The provider's event that an order's money has come."""
    payment = order["payment"]
    return {
        "event_id": event_id,
        "type": "payment.succeeded",
        "session_id": f"s{payment['payment_id']}",
        "payment_id": payment["payment_id"],
        "amount": payment["amount"],
        "currency": payment["currency"],
        "occurred_at": "2030-01-01T00:00:00Z",
    }


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Asserts that the answer is this problem, well-formed, and returns it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == PROBLEM_JSON
    body = response.json()
    assert body["status"] == status
    assert body["code"] == code, body
    assert body["title"] and body["detail"] and body["type"] == f"urn:flashsale:problem:{code}"
    return body  # type: ignore[no-any-return]


@asynccontextmanager
async def serving(configured: Settings) -> AsyncIterator[LocalApi]:
    """The service as the app runs it, without a server in between."""
    app = create_app(configured)
    started, stop = asyncio.Event(), asyncio.Event()

    async def live() -> None:
        async with app.lifespan():
            started.set()
            await stop.wait()

    # The lifespan has its own task, because a fixture begins in one task and ends in another, which
    # anyio does not allow.
    lifespan = asyncio.create_task(live())
    await started.wait()
    try:
        transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield LocalApi(client, app)
    finally:
        stop.set()
        await lifespan


@pytest.fixture(name="api")
async def api_fixture(database_url: str) -> AsyncIterator[LocalApi]:
    async with serving(settings(database_url)) as api:
        yield api


class Answer(NamedTuple):
    """What came of a request that no HTTP client would send."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


async def told_to(
    app: Litestar,
    path: bytes,
    messages: Sequence[dict[str, Any]] = (),
    *headers: tuple[bytes, bytes],
    method: str = "POST",
    version: str = "1.1",
    host: bytes | None = b"x",
) -> Answer:
    """Sends ann's request as a server hands it to the app: the path and the headers as they are."""
    start: dict[str, Any] = {}
    body: list[bytes] = []
    coming = iter(messages)

    async def receive() -> Any:
        return next(coming, {"type": "http.request", "body": b"", "more_body": False})

    async def send(message: Any) -> None:
        start.update(message if "status" in message else {})
        body.append(message.get("body", b""))

    scope = {
        "type": "http",
        "http_version": version,
        "method": method,
        "scheme": "http",
        "path": unquote(path.decode()),
        "raw_path": path,
        "query_string": b"",
        "root_path": "",
        "headers": [
            *([] if host is None else [(b"host", host)]),
            (b"x-customer-id", b"ann"),
            *headers,
        ],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    await app(scope, receive, send)  # type: ignore[arg-type]
    return Answer(start["status"], dict(start["headers"]), b"".join(body))


def part(body: bytes, *, more: bool) -> dict[str, Any]:
    """A part of a body, as a server hands it to the app."""
    return {"type": "http.request", "body": body, "more_body": more}
