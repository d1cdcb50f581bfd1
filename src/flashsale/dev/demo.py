"""`flashsale demo`: a whole sale against a fresh service over real HTTP, shown live.

When the units are sold, the sale closes, and the promises are checked against three sources: the
database, the provider's ledger, and the answers that the customers got.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psycopg
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from flashsale.dev.customers import FINAL, DemoCustomer, DemoSale
from flashsale.dev.stack import Stack
from flashsale.processes import free_port
from flashsale.settings import Settings

PRICE = 4900
SETTLE_SECONDS = 60.0
LONGEST_SALE_SECONDS = 90.0


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
            sale = DemoSale(customers, stock, hold_seconds)
            console.print(
                f"{customers} customers want one of {stock} units; "
                f"a reservation may be paid for {hold_seconds} s.\n"
            )
            item_id = asyncio.run(_sell(stack, sale, seed, console))
            promises = _check(stack, sale, item_id)
            _report(console, sale, promises)
    return 0 if all(held for _promise, held, _detail in promises) else 1


async def _sell(stack: Stack, sale: DemoSale, seed: int, console: Console) -> int:
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
            DemoCustomer(f"customer-{n}", sale, stack.api_url, f"{seed}-{n}")
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


def _check(stack: Stack, sale: DemoSale, item_id: int) -> list[tuple[str, bool, str]]:
    """The promises, one by one: its name, whether it held, and what was found."""
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
def _display(console: Console, sale: DemoSale) -> Iterator[Any]:
    """Shows a live table in a terminal, or prints a line per second elsewhere."""
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


def _picture(sale: DemoSale) -> Group:
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


def _report(console: Console, sale: DemoSale, promises: list[tuple[str, bool, str]]) -> None:
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
    """Raises the limit of open files, because each waiting customer has an event stream open."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = wanted if hard == resource.RLIM_INFINITY else min(max(wanted, _soft), hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limit, _soft), hard))
    if limit < wanted:
        print(
            f"This system allows {limit} open files: with so many customers some wait for a "
            "connection. `ulimit -n` raises it.",
            file=sys.stderr,
        )
