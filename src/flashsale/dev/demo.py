"""`flashsale demo`: a whole sale, told live, against a fresh service over real HTTP.

Every customer is a coroutine with dice: most pay, some never do, some cancel, some pay too late,
some press the button twice. When the units are sold the sale closes, and the promises are checked
from three sides: the database, the provider's ledger, and what the customers were told.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h11
import httpx
import msgspec
import psycopg
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from flashsale.dev.postgres import free_port
from flashsale.dev.stack import Stack
from flashsale.settings import Settings

FINAL = ("paid", "expired", "cancelled", "unserved")
CUSTOMERS_PER_SECOND = 200  # two cores carry the service, its database and all the customers
PRICE = 4900
SETTLE_SECONDS = 60.0
LONGEST_SALE_SECONDS = 90.0


class Sale:
    """What happened so far."""

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
        """A customer was told about an order. A final state must stay; a ticket too."""
        order_id, now = order["order_id"], order["status"]
        before = self.status.get(order_id)
        if before in FINAL and before != now:
            self.problems.append(f"order {order_id} was {before} and became {now}")
        if self.tickets.setdefault(order_id, order["ticket"]) != order["ticket"]:
            self.problems.append(f"order {order_id} changed its ticket")
        self.status[order_id] = now

    def count(self, status: str) -> int:
        return sum(1 for s in self.status.values() if s == status)

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.latencies[what].append(time.perf_counter() - began)


class Answer(msgspec.Struct, frozen=True):
    """An HTTP response, read to its end."""

    status: int
    retry_after: float
    body: bytes

    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class Browser:
    """One customer's connection to a server: one request at a time, kept alive between them.

    On h11 directly: the pools of the ready-made clients take seconds over thousands of connections.
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
    ) -> Answer:
        """Errors: OSError, h11.ProtocolError for a connection that broke."""
        response = await self._send(method, path, headers, body)
        data = b"".join([chunk async for chunk in self._receive()])
        fields = dict(response.headers)
        return Answer(response.status_code, float(fields.get(b"retry-after", 1)), data)

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


class Customer:
    """One customer: asks, waits, and then does what the dice say."""

    def __init__(self, name: str, sale: Sale, api_url: str, seed: str) -> None:
        self.name = name
        self.sale = sale
        self.api = Browser(api_url)
        self.dice = random.Random(seed)
        self.headers = {"X-Customer-Id": name}

    async def shop(self, item_id: int) -> None:
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
            await self._cancel(order)  # does not like lines
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
        """What the browser does at the provider's checkout. Too late, it may be refused."""
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

    async def _call(self, method: str, path: str, headers: dict[str, str] | None = None) -> Answer:
        """Calls the service; an overloaded one is asked again, as its Retry-After says."""
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


def run(customers: int, stock: int, hold_seconds: int, seed: int) -> int:
    """Runs the demo. Returns the exit status: 0 if every promise held."""
    console = Console()
    _allow_many_connections(2 * customers + 500)
    with tempfile.TemporaryDirectory(prefix="flashsale-demo-") as folder:
        Path(folder).chmod(0o711)  # as root, Postgres runs as somebody else
        settings = Settings.from_env(
            {k: v for k, v in os.environ.items() if k == "FLASHSALE_DATABASE_URL"},
            port=free_port(),
            provider_port=free_port(),
        )
        console.print("Starting a fresh service …")
        with Stack(settings, Path(folder), say=lambda _line: None) as stack:
            stack.wait_until_ready()
            sale = Sale(customers, stock, hold_seconds)
            console.print(
                f"{customers} customers want one of {stock} units; "
                f"a reservation may be paid for {hold_seconds} s.\n"
            )
            item_id = asyncio.run(_sell(stack, sale, seed, console))
            promises = _check(stack, sale, item_id)
            _report(console, sale, promises)
    return 0 if all(held for _promise, held, _detail in promises) else 1


async def _sell(stack: Stack, sale: Sale, seed: int, console: Console) -> int:
    """Puts the item on sale and lets the customers in; returns the item's id at the end."""
    async with httpx.AsyncClient(base_url=stack.api_url, timeout=30) as api:
        answer = await api.post(
            "/items",
            json={
                "sku": f"demo-{time.time_ns():x}",
                "name": "Sneaker, limited edition",
                "price": PRICE,
                "currency": "EUR",
                "stock": sale.stock,
                "hold_seconds": sale.hold_seconds,
            },
        )
        item_id = int(answer.raise_for_status().json()["item_id"])
        sale.started = time.monotonic()
        people = [
            Customer(f"customer-{n}", sale, stack.api_url, f"{seed}-{n}")
            for n in range(sale.customers)
        ]
        shopping = [asyncio.create_task(p.shop(item_id)) for p in people]
        closed = False
        with _display(console, sale) as show:
            while not all(task.done() for task in shopping):
                stack.watch()
                show()
                elapsed = time.monotonic() - sale.started
                sold_out = sale.count("paid") >= sale.stock
                if not closed and (sold_out or elapsed > LONGEST_SALE_SECONDS):
                    now = datetime.now(UTC).isoformat()
                    closed = (
                        await api.patch(f"/items/{item_id}", json={"closes_at": now})
                    ).is_success
                await asyncio.sleep(0.1)
            show()
        for task in shopping:
            task.result()
    return item_id


def _check(stack: Stack, sale: Sale, item_id: int) -> list[tuple[str, bool, str]]:
    """The promises, one by one: what, whether it held, what was seen."""
    with psycopg.connect(stack.settings.database_url, autocommit=True) as conn:

        def query(text: str) -> list[Any]:
            return conn.execute(text.encode(), [item_id] if "%s" in text else None).fetchall()

        deadline = time.monotonic() + SETTLE_SECONDS
        while (
            query("select 1 from flashsale.queue_status where queue = 'payments' and depth > 0")
            or query("select 1 from flashsale.money_at_risk")
        ) and time.monotonic() < deadline:
            time.sleep(0.1)
        violations = query("select promise, detail from flashsale.violation")
        orders = {
            str(order_id): status
            for order_id, status in query(
                "select order_id, status from flashsale.order_status where item_id = %s"
            )
        }
        paid = sum(status == "paid" for status in orders.values())
        live = paid + sum(status == "reserved" for status in orders.values())
        queue = query("select queue, depth, dead from flashsale.queue_status where dead > 0")
        unfair = query(
            "select count(*) from flashsale.order_status o where o.item_id = %s "
            "and o.status = 'unserved' and exists (select from flashsale.order_status l where "
            "l.item_id = o.item_id and l.ticket > o.ticket and l.reserved_at is not null)"
        )[0][0]
        refunds = query("select count(*) from flashsale_data.payments where status = 'refunded'")[
            0
        ][0]
        at_risk = len(query("select 1 from flashsale.money_at_risk"))
    totals = httpx.get(f"{stack.provider_url}/sessions", timeout=30).json()["totals"]
    captured = totals["captured_amounts"].get("EUR", 0)
    returned = totals["refunded_amounts"].get("EUR", 0)
    lost = [o for o, told in sale.status.items() if told in FINAL and orders.get(o) != told]
    return [
        ("never oversold", live <= sale.stock, f"{live} of {sale.stock} units are sold or held"),
        ("fair", unfair == 0, "nobody was served before somebody with a lower ticket"),
        ("no order lost", not lost, f"{len(sale.status)} orders are as their customers were told"),
        (
            "no money lost",
            captured - returned == paid * PRICE and not at_risk,
            f"{_euros(captured)} captured = {paid} orders paid ({_euros(paid * PRICE)}) + "
            f"{refunds} refunded ({_euros(returned)})",
        ),
        ("no job lost", not queue, "no dead letters"),
        (
            "customers were told the truth",
            not sale.problems,
            "; ".join(sale.problems[:3]) or "no final state changed, no ticket changed",
        ),
        (
            "flashsale.violation is empty",
            not violations,
            "; ".join(f"{p}: {d}" for p, d in violations[:3]) or "all invariants hold",
        ),
    ]


@contextlib.contextmanager
def _display(console: Console, sale: Sale) -> Iterator[Any]:
    """A live table in a terminal, a line a second elsewhere."""
    if console.is_terminal:
        with Live(console=console, refresh_per_second=8, transient=True) as live:
            yield lambda: live.update(_picture(sale))
        return
    printed = -1

    def line() -> None:
        nonlocal printed
        second = int(time.monotonic() - sale.started)
        if second != printed:
            printed = second
            counts = "  ".join(f"{s} {sale.count(s)}" for s in ("reserved", "waiting", *FINAL))
            print(f"{second:3d} s  asked {len(sale.status)}  {counts}", flush=True)

    yield line


def _picture(sale: Sale) -> Group:
    table = Table.grid(padding=(0, 2))
    asked = len(sale.status)
    for label, count, of in [
        ("asked", asked, sale.customers),
        ("paid", sale.count("paid"), sale.stock),
        ("reserved", sale.count("reserved"), sale.stock),
        ("waiting", sale.count("waiting"), sale.customers),
        ("expired", sale.count("expired"), sale.customers),
        ("cancelled", sale.count("cancelled"), sale.customers),
        ("unserved", sale.count("unserved"), sale.customers),
    ]:
        table.add_row(label, ProgressBar(total=of, completed=count, width=40), str(count))
    elapsed = time.monotonic() - sale.started
    latency = _percentiles(sale.latencies["reserve"])
    return Group(f"{elapsed:5.1f} s   reserve {latency}\n", table)


def _report(console: Console, sale: Sale, promises: list[tuple[str, bool, str]]) -> None:
    outcome = Table(title="Outcome", title_justify="left", show_header=False)
    for status in FINAL:
        outcome.add_row(status, str(sale.count(status)))
    console.print(outcome)
    latency = Table(title="Latency, as the customers saw it", title_justify="left")
    for column in ("call", "count", "p50", "p95", "p99", "max"):
        latency.add_column(column, justify="left" if column == "call" else "right")
    for call, values in sale.latencies.items():
        if len(values) > 1:
            cuts = statistics.quantiles(values, n=100)
            shown = [cuts[49], cuts[94], cuts[98], max(values)]
            latency.add_row(call, str(len(values)), *(f"{v * 1000:.1f} ms" for v in shown))
    console.print(latency)
    checked = Table(title="Promises", title_justify="left", show_header=False)
    for promise, held, detail in promises:
        checked.add_row("[green]held[/]" if held else "[red]BROKEN[/]", promise, detail)
    console.print(checked)
    all_held = all(held for _promise, held, _detail in promises)
    console.print("All promises held." if all_held else "A promise was broken.")


def _percentiles(values: list[float]) -> str:
    if len(values) < 2:
        return "—"
    cuts = statistics.quantiles(values, n=100)
    return f"p50 {cuts[49] * 1000:.1f} ms, p99 {cuts[98] * 1000:.1f} ms"


def _euros(minor: int) -> str:
    return f"{minor / 100:,.2f} EUR"


def _allow_many_connections(wanted: int) -> None:
    """Each waiting customer holds a stream open; children inherit the limit."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = wanted if hard == resource.RLIM_INFINITY else min(max(wanted, _soft), hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limit, _soft), hard))
    if limit < wanted:
        print(
            f"This system allows {limit} open files: with so many customers some wait for a "
            "connection. `ulimit -n` raises it.",
            file=sys.stderr,
        )
