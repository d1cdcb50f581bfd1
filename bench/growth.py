"""Costs as things grow: orders, items, the line, holds due at once, open event streams."""

from __future__ import annotations

import asyncio
import resource
import statistics
import threading
import time
from collections.abc import Callable
from functools import partial

import psycopg

from bench import sql, web
from bench.report import BenchReport
from flashsale.dev.postgres import EmbeddedPostgres

CLIENTS = 8
RESERVE = sql.single("flashsale", "\\set i 1\n")
PAY = (
    f"{sql.NEW_CUSTOMER}select payment_id from flashsale.reserve(1, {sql.CUSTOMER}) \\gset\n"
    "select flashsale.pay(:payment_id, 's' || :payment_id, 1000, 'EUR');\n"
)
READ = "select * from flashsale.item_status(1);\n"
PROMOTED = 1_000
DUE = 10_000
MANY_DUE = 100_000
STREAMS = 10_000
ORDERS = (10_000, 1_000_000, 10_000_000)
LINES = (1_000, 1_000_000)


def run(report: BenchReport, seconds: float, *, quick: bool) -> None:
    """Runs all of them. quick: with a hundredth of the numbers."""
    share = 100 if quick else 1
    with sql.server(report, autovacuum="off") as postgres:
        many_orders(report, postgres, seconds, share)
    with sql.server(report) as postgres:
        many_items(report, postgres, seconds)
        long_line(report, postgres, seconds, share)
    with sql.server(report) as postgres:
        mass_expiry(report, postgres, seconds, DUE // share)
        event_streams(report, postgres, STREAMS // share)
    expire_and_promote(report, MANY_DUE // share)
    churn(report, seconds)


def many_orders(
    report: BenchReport, postgres: EmbeddedPostgres, seconds: float, share: int
) -> None:
    """Measures databases of several sizes in one server, so that the sides can take turns."""
    sizes = [max(1_000, size // share) for size in ORDERS]
    databases = {size: _database(postgres, size) for size in sizes}
    small, *others = sizes
    costs: dict[str, Callable[[str], float]] = {
        "reserve": lambda url: _microseconds(postgres, RESERVE, url, seconds),
        "reserve and pay": lambda url: _microseconds(postgres, PAY, url, seconds),
        "item read": lambda url: _microseconds(postgres, READ, url, seconds),
        f"promoting {PROMOTED:,}": lambda url: _promotion(url) * 1e6,
    }
    for what, cost in costs.items():
        seen = report.take_turns({f"{size:,}": partial(cost, databases[size]) for size in sizes})
        report.raw[f"SQL, µs of {what} by number of orders"] = seen
        for size in others:
            report.ratio(
                f"SQL, cost of {what} at {size:,} orders / at {small:,}",
                "<= 1.2",
                seen[f"{size:,}"],
                seen[f"{small:,}"],
            )


def _database(postgres: EmbeddedPostgres, orders: int) -> str:
    """The URL of a database with 1,000 sold-out items with these orders, and one item to storm."""
    name = f"orders_{orders}"
    with psycopg.connect(postgres.url("flashsale", "postgres"), autocommit=True) as conn:
        conn.execute(f"create database {name} template flashsale owner flashsale".encode())
    url = postgres.url(name)
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(
            "select flashsale.create_item('hot', 'hot', 1000, 'EUR', %s, 600)", [sql.STOCK]
        )
        each = orders // 1000
        conn.execute(
            "select flashsale.create_item('i' || n, 'i', 1000, 'EUR', %s, 600) "
            "from generate_series(1, 1000) n",
            [each],
        )
        conn.execute(
            "insert into flashsale_data.orders (order_id, item_id, ticket, customer_id, status,"
            " created_at, reserved_at, expires_at, paid_at)"
            " select flashsale.order_id_of(i, t), i, t, 'old' || t || '-' || i, 'paid',"
            " now(), now(), now() + interval '600 s', now()"
            " from generate_series(2, 1001) i, generate_series(1, %s) t",
            [each],
        )
        conn.execute(
            "insert into flashsale_data.payments (payment_id, order_id, amount, currency, status,"
            " requested_at, opened_at, ended_at, session_id) overriding system value"
            " select order_id, order_id, 1000, 'EUR', 'succeeded', now(), now(), now(),"
            " 'old' || order_id"
            " from flashsale_data.orders"
        )
        conn.execute(
            "update flashsale_data.items set paid = %s, settled = %s, noted_ticket = %s "
            "where item_id > 1",
            [each] * 3,
        )
        conn.execute("select setval(line, %s) from flashsale_data.items where item_id > 1", [each])
        conn.execute("vacuum (freeze, analyze)")
    with psycopg.connect(postgres.url(name, "postgres"), autocommit=True) as conn:
        conn.execute("checkpoint")
    return url


def many_items(report: BenchReport, postgres: EmbeddedPostgres, seconds: float) -> None:
    few, *_, many = sizes = (10, 1_000, 10_000)
    sql.query(
        postgres,
        "select count(flashsale.create_item('i' || n, 'i', 1000, 'EUR', %s, 600)) "
        "from generate_series(1, %s) n",
        sql.STOCK,
        many,
    )
    # A session opens an item's sequence at its first use. That cost is not to be measured here.
    opened = "select count(pg_sequence_last_value(line)) from flashsale_data.items"
    seen = report.take_turns(
        {
            f"{size:,}": partial(
                sql.latency,
                postgres,
                sql.single("flashsale", f"\\set i random(1, {size})\n"),
                postgres.url(),
                CLIENTS,
                seconds,
                first=opened,
            )
            for size in sizes
        }
    )
    report.raw["SQL, µs of reserve by number of items"] = seen
    report.ratio(
        f"SQL, cost of reserve over {many:,} items / over {few} of them",
        "<= 1.2",
        seen[f"{many:,}"],
        seen[f"{few:,}"],
    )
    with psycopg.connect(postgres.url(), autocommit=True) as conn:
        for _ in range(100):  # many sweeps, until everything above is settled
            conn.execute("select flashsale.sweep()")
        idle = [_seconds(conn, "select flashsale.sweep()") * 1000 for _ in range(5 * report.rounds)]
    report.figure("SQL, an idle sweep with 10,000 open items, ms", "<= 20", idle)


def long_line(report: BenchReport, postgres: EmbeddedPostgres, seconds: float, share: int) -> None:
    """Compares two items without stock: one with a short line, one with a million waiting."""
    sizes = [max(1_000, size // share) for size in LINES]
    lines = {}
    for size in sizes:
        [(item_id,)] = sql.query(
            postgres,
            "select item_id from flashsale.create_item(%s, 'i', 1000, 'EUR', 0, 600)",
            f"line{size}",
        )
        lines[size] = item_id
    with psycopg.connect(postgres.url(), autocommit=True) as conn:
        for size, item_id in lines.items():
            _line_up(conn, item_id, "w", size)
        conn.execute("vacuum analyze")
    one, other = (f"{size:,}" for size in sizes)
    seen = report.take_turns(
        {
            f"{size:,}": partial(
                _microseconds,
                postgres,
                sql.single("flashsale", f"\\set i {item}\n"),
                postgres.url(),
                seconds,
            )
            for size, item in lines.items()
        }
    )
    report.raw["SQL, µs of joining by length of the line"] = seen
    report.ratio(f"SQL, joining a line of {other} / of {one}", "<= 1.2", seen[other], seen[one])
    turns = report.take_turns(
        {f"{size:,}": partial(_restock, postgres.url(), item) for size, item in lines.items()}
    )
    report.ratio(
        f"SQL, restocking one unit and promoting, line of {other} / of {one}",
        "<= 1.2",
        turns[other],
        turns[one],
    )


def mass_expiry(
    report: BenchReport, postgres: EmbeddedPostgres, seconds: float, count: int
) -> None:
    """Lets many holds of one item end at once, with as many customers waiting, and sweeps."""
    slower, took = [], []
    calm = "\\set i {item}\n" + sql.NEW_CUSTOMER + "select flashsale.reserve(:i, 'x' || :c);\n"
    for number in range(report.rounds):
        with psycopg.connect(postgres.url(), autocommit=True) as conn:
            item = _due(conn, f"due{number}", count)
            script = calm.format(item=item)
            before = _microseconds(postgres, script, postgres.url(), seconds, rate=200)
            _make_due(conn, item)
            done = threading.Event()
            times: list[float] = []

            def sweep(
                item: int = item, done: threading.Event = done, times: list[float] = times
            ) -> None:
                with psycopg.connect(postgres.url(), autocommit=True) as own:
                    began = time.monotonic()
                    while not done.is_set():
                        [(more,)] = own.execute(
                            "select more from flashsale.sweep('bench')"
                        ).fetchall()
                        if not times and _waiting(own, item) <= 0:
                            times.append(time.monotonic() - began)
                        if not more:
                            time.sleep(0.05)

            sweeper = threading.Thread(target=sweep)
            sweeper.start()
            during = _microseconds(postgres, script, postgres.url(), seconds, rate=200)
            done.set()
            sweeper.join()
        slower.append(during / before)
        took += times or [float("inf")]
    report.figure(
        f"SQL, a reserve while {count:,} holds of its item expire / before", "<= 1.5", slower
    )
    report.figure(f"SQL, {count:,} expired and their units promoted, s", "<= 3", took)


def expire_and_promote(report: BenchReport, count: int) -> None:
    took = []
    with sql.server(report) as postgres:
        for number in range(report.rounds):
            with psycopg.connect(postgres.url(), autocommit=True) as conn:
                item = _due(conn, f"mass{number}", count)
                conn.execute("vacuum analyze flashsale_data.orders")
                _make_due(conn, item)
                began = time.monotonic()
                more = True
                while more:
                    [(more,)] = conn.execute("select more from flashsale.sweep('bench')").fetchall()
                took.append(time.monotonic() - began)
                [(wrong,)] = conn.execute(
                    "select count(*) from flashsale_data.orders where item_id = %s "
                    "and (status = 'reserved') <> (ticket > %s)",
                    [item, count],
                ).fetchall()
                if wrong:
                    report.broken.append(f"{wrong} orders out of order after a mass expiry")
    report.figure(f"SQL, {count:,} expired and {count:,} promoted, s", "<= 5", took)
    report.figure("the same, promotions per second", ">= 20,000", (count / t for t in took))


def _due(conn: psycopg.Connection, sku: str, count: int) -> int:
    """The id of an item with `count` holds and `count` waiting orders."""
    row = conn.execute(
        "select item_id from flashsale.create_item(%s, 'i', 1000, 'EUR', %s, 600)", [sku, count]
    ).fetchone()
    assert row is not None
    _line_up(conn, row[0], "d", 2 * count)
    return int(row[0])


def _line_up(conn: psycopg.Connection, item_id: int, prefix: str, count: int) -> None:
    for first in range(0, count, 1000):
        conn.execute(
            "select count(*) from flashsale.reserve_many(array_fill(%s, array[least(1000, %s)]), "
            "(select array_agg(%s || (%s + n)) from generate_series(1, least(1000, %s)) n))",
            [item_id, count - first, prefix, first, count - first],
        )


def _make_due(conn: psycopg.Connection, item_id: int) -> None:
    """Ends all holds of the item now."""
    conn.execute(
        "update flashsale_data.orders set expires_at = clock_timestamp() "
        "where item_id = %s and status = 'reserved'",
        [item_id],
    )


def _waiting(conn: psycopg.Connection, item_id: int) -> int:
    """How many of the orders that waited when the holds ended still wait."""
    [(count,)] = conn.execute(
        "select count(*) from flashsale_data.orders where item_id = %s and status = 'waiting' "
        "and customer_id like 'd%%'",
        [item_id],
    ).fetchall()
    return int(count)


def churn(report: BenchReport, seconds: float) -> None:
    """Reserves and cancels repeatedly with autovacuum on. What a sweep reads must stay small."""
    script = (
        f"{sql.NEW_CUSTOMER}select order_id from flashsale.reserve(1, {sql.CUSTOMER}) \\gset\n"
        "select flashsale.cancel(:order_id);\n"
    )
    size = (
        "select sum(pg_relation_size(c))::bigint from unnest(array['orders_expires_at_held', "
        "'orders_order_id_waiting', 'orders_order_id_unrecycled', 'tallies', 'items']) n, "
        "lateral (select ('flashsale_data.' || n)::regclass) r (c)"
    )
    with sql.server(report, autovacuum_naptime="1s") as postgres:
        [(_,)] = sql.query(
            postgres, "select item_id from flashsale.create_item('i', 'i', 1000, 'EUR', 1000, 600)"
        )
        sizes = []
        done = threading.Event()

        def sweep() -> None:
            with psycopg.connect(postgres.url(), autocommit=True) as conn:
                while not done.wait(0.25):
                    conn.execute("select flashsale.sweep('bench')")

        sweeper = threading.Thread(target=sweep)
        sweeper.start()
        for _ in range(report.rounds + 1):
            sql.pgbench(postgres, script, CLIENTS, 3 * seconds)
            [(found,)] = sql.query(postgres, size)
            sizes.append(found / 1e6)
        done.set()
        sweeper.join()
    report.raw["MB of items, tallies and the sweeps' indexes after each round of churn"] = sizes
    report.figure(
        "SQL, size of what sweeps read after each round of churn / after the first",
        "<= 3",
        (s / sizes[0] for s in sizes[1:]),
    )


def event_streams(report: BenchReport, postgres: EmbeddedPostgres, count: int) -> None:
    """Opens `count` event streams at one replica, then promotes all of their orders at once."""
    _allow_files(2 * count)
    [(item_id,)] = sql.query(
        postgres, "select item_id from flashsale.create_item('sse', 'i', 1000, 'EUR', 0, 600)"
    )
    with psycopg.connect(postgres.url(), autocommit=True) as conn:
        _line_up(conn, item_id, "s", count)
    orders = sql.query(
        postgres,
        "select order_id, customer_id from flashsale.order_status where item_id = %s",
        item_id,
    )
    with web.service(postgres) as port:
        heard, refused = asyncio.run(
            _listen(port, orders, lambda: _restock(postgres.url(), item_id, count))
        )
    report.raw["SSE, seconds from promotion to the customer"] = {
        "open": len(heard),
        "refused at first": refused,
        "p50": statistics.median(heard),
        "max": max(heard),
    }
    report.figure(
        f"SSE, of {count:,} streams open at a replica, share that heard",
        ">= 1.0",
        [len([h for h in heard if h < 60]) / count],
    )
    report.figure("the same: seconds until the last of them heard", "", [max(heard)])


def _allow_files(count: int) -> None:
    """Raises the limit of open files, for this process and its children."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(_soft, wanted), hard))


async def _listen(
    port: int, orders: list[tuple[int, str]], promote: Callable[[], float]
) -> tuple[list[float], int]:
    """Seconds from the promotion until each customer's stream shows it.

    Also how many streams were refused at first, and opened later.
    """
    began = float("inf")

    async def listen(order_id: int, customer: str, ready: asyncio.Semaphore) -> float:
        async with ready:
            while (stream := await _stream(port, order_id, customer)) is None:
                refused.append(order_id)
                if len(refused) > len(orders):
                    raise SystemExit("bench: event streams are refused, again and again")
                await asyncio.sleep(1)
            reader, writer = stream
        opened.append(order_id)
        await reader.readuntil(b'"reserved"')
        heard = time.monotonic()
        writer.close()
        return heard

    opened: list[int] = []
    refused: list[int] = []
    gate = asyncio.Semaphore(200)
    tasks = [asyncio.create_task(listen(o, c, gate)) for o, c in orders]
    while len(opened) < len(orders):
        await asyncio.sleep(0.1)
        for task in tasks:
            if task.done():
                task.result()
    began = time.monotonic()
    await asyncio.to_thread(promote)
    return [heard - began for heard in await asyncio.gather(*tasks)], len(refused)


async def _stream(
    port: int, order_id: int, customer: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
    """The order's event stream after its first event; None if it was refused."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        f"GET /orders/{order_id}/events HTTP/1.1\r\nHost: localhost\r\n"
        f"X-Customer-Id: {customer}\r\nAccept: text/event-stream\r\n\r\n".encode()
    )
    try:
        await reader.readuntil(b"waiting")
    except asyncio.IncompleteReadError:
        writer.close()
        return None
    return reader, writer


def _restock(url: str, item_id: int, units: int = 1) -> float:
    """Seconds until the line has got the added units."""
    with psycopg.connect(url, autocommit=True) as conn:
        began = time.monotonic()
        conn.execute("select flashsale.restock(%s, %s)", [item_id, units])
        conn.execute("select flashsale.promote(%s)", [item_id])
        return time.monotonic() - began


def _promotion(url: str) -> float:
    """Seconds to serve PROMOTED waiting customers of a new item."""
    with psycopg.connect(url, autocommit=True) as conn:
        row = conn.execute(
            "select item_id from flashsale.create_item('p' || clock_timestamp(), 'i', 1000, 'EUR',"
            " 0, 600)"
        ).fetchone()
        assert row is not None
        conn.execute(
            "select count(*) from flashsale.reserve_many(array_fill(%s, array[%s]), "
            "(select array_agg('p' || n) from generate_series(1, %s) n))",
            [row[0], PROMOTED, PROMOTED],
        )
    return _restock(url, row[0], PROMOTED)


def _microseconds(
    postgres: EmbeddedPostgres, script: str, url: str, seconds: float, rate: int | None = None
) -> float:
    """Mean latency of the script's transactions."""
    return sql.latency(postgres, script, url, CLIENTS, seconds, rate)


def _seconds(conn: psycopg.Connection, text: str) -> float:
    began = time.monotonic()
    conn.execute(text.encode())
    return time.monotonic() - began
