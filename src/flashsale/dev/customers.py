"""The customers of the demo: coroutines that behave at random, each with its own connection.

Most customers pay, some never do, some cancel, some pay too late, and some press a button twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any

import h11
import httpx
import msgspec

FINAL = ("paid", "expired", "cancelled", "unserved")
CUSTOMERS_PER_SECOND = 200  # two cores carry the service, its database and all the customers


class DemoSale:
    """What has happened in the demo so far."""

    def __init__(self, customers: int, stock: int, hold_seconds: int) -> None:
        self.customers = customers
        self.stock = stock
        self.hold_seconds = hold_seconds
        self.started = time.monotonic()
        self.status: dict[str, str] = {}
        """Each order's status as its customer last heard it, by order id."""
        self.tickets: dict[str, int] = {}
        self.latencies: dict[str, list[float]] = {"reserve": [], "pay": [], "cancel": []}
        self.answers: Counter[int] = Counter()
        self.problems: list[str] = []

    def heard(self, order: dict[str, Any]) -> None:
        """Records an answer, and checks that an order's final state and ticket never change."""
        order_id, now = order["order_id"], order["status"]
        before = self.status.get(order_id)
        if before in FINAL and before != now:
            self.problems.append(f"order {order_id} was {before} and became {now}")
        if self.tickets.setdefault(order_id, order["ticket"]) != order["ticket"]:
            self.problems.append(f"order {order_id} changed its ticket")
        self.status[order_id] = now

    def count(self, status: str) -> int:
        """How many orders have this status, by the last answer to their customers."""
        return sum(1 for s in self.status.values() if s == status)

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Records how long a call takes, under the name of the call."""
        began = time.perf_counter()
        yield
        self.latencies[what].append(time.perf_counter() - began)


class BrowserAnswer(msgspec.Struct, frozen=True):
    """An HTTP response, read to its end."""

    status: int
    retry_after: float
    body: bytes

    def json(self) -> Any:
        """The body, decoded."""
        return msgspec.json.decode(self.body)


class Browser:
    """One customer's connection to a server: one request at a time, kept alive between them.

    It uses h11 directly, because the connection pools of common clients take seconds when there are
    thousands of connections.
    """

    def __init__(self, base_url: str) -> None:
        self._address = httpx.URL(base_url)
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._http = h11.Connection(h11.CLIENT)

    async def __aenter__(self) -> Browser:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._hang_up()

    async def request(
        self, method: str, path: str, headers: dict[str, str], body: bytes = b""
    ) -> BrowserAnswer:
        """Sends a request. Errors: OSError, h11.ProtocolError for a connection that broke."""
        response = await self._send(method, path, headers, body)
        data = b"".join([chunk async for chunk in self._receive()])
        fields = dict(response.headers)
        return BrowserAnswer(response.status_code, float(fields.get(b"retry-after", 1)), data)

    async def events(self, path: str, headers: dict[str, str]) -> AsyncIterator[bytes]:
        """The data of each server-sent event. Errors: as request."""
        await self._send("GET", path, headers, b"")
        rest = b""
        async for chunk in self._receive():
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    yield line.removeprefix(b"data:")

    async def _send(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> h11.Response:
        if self._writer is None or self._http.our_state is not h11.IDLE:
            self._hang_up()
            host, port = self._address.host, self._address.port or 80
            self._reader, self._writer = await asyncio.open_connection(host, port)
            self._http = h11.Connection(h11.CLIENT)
        fields = {"Host": self._address.netloc.decode(), "Content-Length": str(len(body))}
        if body:
            fields["Content-Type"] = "application/json"
        fields |= headers
        request = h11.Request(method=method, target=path, headers=list(fields.items()))
        data = [self._http.send(request)]
        if body:
            data.append(self._http.send(h11.Data(data=body)))
        data.append(self._http.send(h11.EndOfMessage()))
        self._writer.write(b"".join(part or b"" for part in data))
        response = await self._next()
        assert isinstance(response, h11.Response)
        return response

    async def _receive(self) -> AsyncIterator[bytes]:
        while not isinstance(event := await self._next(), h11.EndOfMessage):
            assert isinstance(event, h11.Data)
            yield bytes(event.data)
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()

    async def _next(self) -> Any:
        assert self._reader is not None
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._reader.read(65536))
        return event

    def _hang_up(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class DemoCustomer:
    """One customer: requests a unit, waits, and then pays or cancels at random."""

    def __init__(self, name: str, sale: DemoSale, api_url: str, seed: str) -> None:
        self.name = name
        self.sale = sale
        self.api = Browser(api_url)
        self.dice = random.Random(seed)
        self.headers = {"X-Customer-Id": name}

    async def shop(self, item_id: int) -> None:
        """Takes part in the sale, and returns when the order has ended."""
        async with self.api:
            await self._shop(item_id)

    async def _shop(self, item_id: int) -> None:
        rush_seconds = self.sale.customers / CUSTOMERS_PER_SECOND
        await asyncio.sleep(self.dice.triangular(0, rush_seconds, rush_seconds / 5))
        order = await self._reserve(item_id)
        if order is None:
            return
        roll = self.dice.random()
        if order["status"] == "waiting" and roll > 0.95:
            await self._cancel(order)  # some customers don't wait in line
            return
        order = await self._wait_for(order, ("reserved", *FINAL), need_checkout=True)
        if order["status"] != "reserved":
            return
        if roll < 0.70:
            await asyncio.sleep(self.dice.uniform(0.05, 0.5 * self.sale.hold_seconds))
            await self._pay(order)
        elif roll < 0.80:
            await asyncio.sleep(self.dice.uniform(0.05, 0.5 * self.sale.hold_seconds))
            await self._cancel(order)
            return
        elif roll < 0.85:
            deadline = datetime.fromisoformat(order["expires_at"])
            await asyncio.sleep((deadline - datetime.now(UTC)).total_seconds() + 0.01)
            await self._pay(order)
        await self._wait_for(order, FINAL)

    async def _reserve(self, item_id: int) -> dict[str, Any] | None:
        headers = self.headers | {"Idempotency-Key": f"{self.name}-1"}
        answers = []
        for _ in range(2 if self.dice.random() < 0.1 else 1):  # some press the button twice
            with self.sale.timed("reserve"):
                answer = await self._call("POST", f"/items/{item_id}/orders", headers=headers)
            answers.append(answer)
        if any(a.status not in (200, 201, 202) for a in answers):
            return None
        orders = [a.json() for a in answers]
        if len({o["order_id"] for o in orders}) != 1:
            self.sale.problems.append(f"{self.name} asked twice and got two orders")
        return dict(orders[-1])

    async def _pay(self, order: dict[str, Any]) -> None:
        """Pays at the provider's checkout, which may refuse a payment that is too late."""
        checkout = httpx.URL(order["payment"]["checkout_url"] + "/complete")
        with self.sale.timed("pay"), contextlib.suppress(OSError, h11.ProtocolError):
            async with Browser(str(checkout)) as provider:
                await provider.request("POST", checkout.path, {}, b'{"outcome": "succeed"}')

    async def _cancel(self, order: dict[str, Any]) -> None:
        with self.sale.timed("cancel"):
            await self._call("DELETE", f"/orders/{order['order_id']}")

    async def _wait_for(
        self, order: dict[str, Any], states: tuple[str, ...], need_checkout: bool = False
    ) -> dict[str, Any]:
        """Follows the order's events until it is in one of the states."""
        while True:
            with contextlib.suppress(OSError, h11.ProtocolError):
                async for event in self.api.events(
                    f"/orders/{order['order_id']}/events", self.headers
                ):
                    order = msgspec.json.decode(event)
                    self.sale.heard(order)
                    ready = not need_checkout or (order["payment"] or {}).get("checkout_url")
                    if order["status"] in FINAL or (order["status"] in states and ready):
                        return order
            await asyncio.sleep(0.2)

    async def _call(
        self, method: str, path: str, headers: dict[str, str] | None = None
    ) -> BrowserAnswer:
        """Calls the service. If it is overloaded, repeats the call after its Retry-After."""
        for _ in range(20):
            try:
                answer = await self.api.request(method, path, headers or self.headers)
            except (OSError, h11.ProtocolError):
                await asyncio.sleep(0.2)
                continue
            self.sale.answers[answer.status] += 1
            if answer.status != 503:
                if answer.status < 300:
                    self.sale.heard(answer.json())
                return answer
            await asyncio.sleep(answer.retry_after)
        raise RuntimeError(f"{method} {path}: no answer after 20 attempts")
