"""The simulated provider and a webhook for it, over real HTTP, and helpers to wait for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import httpx
import msgspec
from granian.constants import Interfaces
from granian.server.embed import Server

from flashsale import signature
from flashsale.processes import free_port
from flashsale.settings import Settings
from flashsale.simulator.app import create_app

SECRET = "a secret of the tests"
DEADLINE_SECONDS = 30


async def until(condition: Callable[[], Any], what: str = "") -> None:
    """Returns as soon as the condition holds."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what or condition}"
        await asyncio.sleep(0.005)


class Delivery(NamedTuple):
    """An event as the provider sent it."""

    header: str
    body: bytes

    @property
    def event(self) -> dict[str, Any]:
        return msgspec.json.decode(self.body)  # type: ignore[no-any-return]


class Webhook:
    """Answers events with the given statuses, then with 200. Status 0 closes the connection."""

    def __init__(self) -> None:
        self.port = free_port()
        self.deliveries: list[Delivery] = []
        self.answers: list[int] = []
        self.answer: Callable[[dict[str, Any]], int] = lambda event: (
            self.answers.pop(0) if self.answers else 200
        )
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/webhooks/payments"

    @property
    def event_ids(self) -> list[str]:
        return [d.event["event_id"] for d in self.deliveries]

    @property
    def types(self) -> list[str]:
        return [d.event["type"] for d in self.deliveries]

    async def start(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        return self

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._open:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[1:]
                headers = {k.lower(): v.strip() for k, _, v in (h.partition(":") for h in head)}
                body = await reader.readexactly(int(headers["content-length"]))
                delivery = Delivery(headers[signature.HEADER.lower()], body)
                status = self.answer(delivery.event)
                self.deliveries.append(delivery)
                if status == 0:
                    return
                writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n".encode())
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()


class Stage:
    """A provider that can be stopped and started again on the same ledger and port."""

    def __init__(self, ledger: Path, hook: Webhook) -> None:
        self.ledger = ledger
        self.hook = hook
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.AsyncClient(base_url=self.url, timeout=10, trust_env=False)
        self._server: Server | None = None
        self._running: asyncio.Task[None] | None = None

    def settings(self, faults: dict[str, Any] | None = None, **changes: Any) -> Settings:
        values = {"event_backoff_seconds": 0.01, "event_backoff_max_seconds": 0.05} | changes
        return Settings(
            provider_port=self.port,
            provider_url=self.url,
            provider_ledger=str(self.ledger),
            webhook_url=self.hook.url,
            webhook_secret=SECRET,
            faults=msgspec.json.encode(faults or {}).decode(),
            **values,
        )

    async def start(self, faults: dict[str, Any] | None = None, **changes: Any) -> Self:
        app = create_app(self.settings(faults, **changes))
        self._server = Server(
            app, port=self.port, interface=Interfaces.ASGI, log_enabled=False, websockets=False
        )
        self._running = asyncio.create_task(self._server.serve())
        await self.reached()
        return self

    async def reached(self) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while True:
            try:
                (await self.client.get("/health/live")).raise_for_status()
                return
            except httpx.HTTPError:
                assert time.monotonic() < deadline, "the provider does not start"
                await asyncio.sleep(0.02)

    async def stop(self) -> None:
        if self._server is not None and self._running is not None:
            self._server.stop()  # type: ignore[no-untyped-call]
            await asyncio.wait_for(self._running, DEADLINE_SECONDS)
            self._server = None

    async def open(self, payment_id: str = "1", key: str | None = None, **fields: Any) -> Any:
        body = {"payment_id": payment_id, "amount": 1000, "currency": "EUR"} | fields
        response = await self.post("/sessions", body, key)
        assert response.is_success, response.text
        return response.json()

    async def post(self, path: str, body: Any = None, key: str | None = None) -> httpx.Response:
        content = body if isinstance(body, bytes) else msgspec.json.encode(body or {})
        headers = {"Idempotency-Key": key} if key is not None else {}
        return await self.client.post(path, content=content, headers=headers)

    async def complete(self, session: Any, outcome: str = "succeed") -> httpx.Response:
        return await self.post(f"/sessions/{session['session_id']}/complete", {"outcome": outcome})

    async def void(self, session: Any, key: str | None = None) -> httpx.Response:
        return await self.post(f"/sessions/{session['session_id']}/void", key=key)

    async def refund(
        self, session: Any, body: Any = None, key: str | None = None
    ) -> httpx.Response:
        return await self.post(f"/sessions/{session['session_id']}/refund", body, key)

    async def faults(self, **faults: Any) -> None:
        response = await self.client.put("/faults", json=faults)
        assert response.status_code == 200, response.text

    async def totals(self) -> Any:
        return (await self.client.get("/sessions")).json()["totals"]

    def lines(self) -> list[Any]:
        return [msgspec.json.decode(line) for line in self.ledger.read_bytes().splitlines()]

    def moves(self) -> list[tuple[str, str]]:
        """The movements of money in the ledger: (what, payment_id)."""
        return [(m["to"], m["payment_id"]) for m in self.lines() if m["kind"] == "moved"]


@asynccontextmanager
async def staged(folder: Path) -> AsyncIterator[Stage]:
    """A stage on which only the webhook has been started."""
    async with AsyncExitStack() as stack:
        hook = await Webhook().start()
        stack.push_async_callback(hook.stop)
        stage = Stage(folder / "ledger.jsonl", hook)
        stack.push_async_callback(stage.client.aclose)
        stack.push_async_callback(stage.stop)
        yield stage
