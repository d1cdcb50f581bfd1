"""The SQL functions: single calls and batches, compared with rivals and with plain INSERTs."""

from __future__ import annotations

import math
import re
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import psycopg

from bench.report import HERE, BenchReport
from flashsale.database.migrate import migrate
from flashsale.dev.postgres import EmbeddedPostgres
from flashsale.testing.servers import postgres_server

STOCK = 10_000_000
ITEMS = 1_000
WAL_SEGMENTS = 96
SETTINGS = {
    "shared_buffers": "1GB",
    "max_connections": "300",
    "min_wal_size": "2GB",
    "max_wal_size": "4GB",
}
CUSTOMER = "'c' || :c"
NEW_CUSTOMER = "\\set c random(1, 9000000000000000)\n"
HOT, SPREAD = "\\set i 1\n", f"\\set i random(1, {ITEMS})\n"
FULL, SOLD_OUT = ITEMS + 1, ITEMS + 2
"""Items without stock: whoever asks joins the line of the first; the second has none."""
ORDER = (
    "insert into bench.orders (order_id, item_id, ticket, customer_id, status, created_at,"
    " reserved_at, expires_at) "
)
TICKET = "nextval('bench.ticket')"
JOB = "insert into bench.jobs (vt, message, headers) "


def single(schema: str, item: str) -> str:
    return f"{item}{NEW_CUSTOMER}select {schema}.reserve(:i, {CUSTOMER});\n"


def batch(size: int) -> str:
    return (
        f"{NEW_CUSTOMER}select count(*) from flashsale.reserve_many(array_fill(1, array[{size}]), "
        f"(select array_agg({CUSTOMER} || n) from generate_series(1, {size}) n));\n"
    )


def same_rows(size: int) -> str:
    """The rows that reserving writes, by one INSERT into tables with the same indexes."""
    return f"""{NEW_CUSTOMER}with o as ({ORDER}
    select t, 1, t, {CUSTOMER} || t, 'reserved', now(), now(), now() + interval '10 minutes'
    from (select {TICKET} t from generate_series(1, {size})) t returning order_id)
  {JOB} select now(), jsonb_build_object('kind', 'open', 'payment_id', order_id), null from o;
"""


SINGLE = {
    "hot": single("flashsale", HOT),
    "spread": single("flashsale", SPREAD),
    "join the line": single("flashsale", f"\\set i {FULL}\n"),
    "counter row": single("counter", HOT),
    "select for update": single("for_update", HOT),
    "row a unit, SKIP LOCKED": single("units", HOT),
    "plain INSERT": f"{NEW_CUSTOMER}{ORDER} select t, 1, t, {CUSTOMER}, 'waiting', "
    f"clock_timestamp(), null, null from {TICKET} t;\n",
    "INSERT of the same rows": same_rows(1),
}


@contextmanager
def server(report: BenchReport, **settings: str) -> Iterator[EmbeddedPostgres]:
    """A server with a new database for flashsale. Violations at the end are reported."""
    with postgres_server(settings={**SETTINGS, **settings}) as postgres:
        migrate(postgres.url())
        yield postgres
        found = query(postgres, "select * from flashsale.violation limit 3")
        report.broken += [f"flashsale.violation: {row}" for row in found]


def run(report: BenchReport, seconds: float) -> None:
    with server(report) as postgres:
        prepare(postgres)
        commits(postgres, simulated=False)
        contention(report, postgres, seconds, "as the disk is")
        batches(report, postgres, seconds)
        commits(postgres, simulated=True)
        contention(report, postgres, seconds, "1 ms")
        rivals(report, postgres, seconds)


def contention(
    report: BenchReport, postgres: EmbeddedPostgres, seconds: float, commit: str
) -> None:
    clients = (8, 32, 128)
    sides = {
        f"{name} {count}": partial(pgbench, postgres, SINGLE[name], count, seconds)
        for count in clients
        for name in ("hot", "spread")
    }
    seen = report.take_turns(sides)
    report.raw[f"SQL reservations/s, commit {commit}"] = seen
    report.ratio(
        f"SQL, commit {commit}, 32 clients: hot item / spread over {ITEMS:,} items",
        ">= 0.95",
        seen["hot 32"],
        seen["spread 32"],
    )
    report.ratio(
        f"SQL, commit {commit}, hot item: 128 clients / 8 clients",
        ">= 0.9",
        seen["hot 128"],
        seen["hot 8"],
    )


def rivals(report: BenchReport, postgres: EmbeddedPostgres, seconds: float) -> None:
    names = [name for name in SINGLE if name != "spread"]
    sides = {name: partial(pgbench, postgres, SINGLE[name], 32, seconds) for name in names}
    seen = report.take_turns(sides)
    report.raw["SQL reservations/s of rivals, commit 1 ms, 32 clients, hot item"] = seen
    start = "SQL, commit 1 ms, 32 clients, hot item: reserve / "
    report.ratio(f"{start}counter row", ">= 25", seen["hot"], seen["counter row"])
    report.ratio(f"{start}select for update", "", seen["hot"], seen["select for update"])
    report.ratio(
        f"{start}row a unit, SKIP LOCKED", ">= 2.5", seen["hot"], seen["row a unit, SKIP LOCKED"]
    )
    report.ratio(
        f"{start}plain INSERT of its two rows",
        ">= 0.85",
        seen["hot"],
        seen["INSERT of the same rows"],
    )
    report.ratio(
        "the same, joining the line / plain INSERT of its one row",
        ">= 0.85",
        seen["join the line"],
        seen["plain INSERT"],
    )
    report.ratio(f"{start}plain INSERT of one row", "", seen["hot"], seen["plain INSERT"])


def batches(report: BenchReport, postgres: EmbeddedPostgres, seconds: float) -> None:
    for size in (100, 256):
        seen = report.take_turns(
            {
                "reserve_many": partial(pgbench, postgres, batch(size), 2, seconds, size),
                "INSERT": partial(pgbench, postgres, same_rows(size), 2, seconds, size),
            }
        )
        report.raw[f"SQL orders/s, batches of {size}, 2 connections"] = seen
        report.ratio(
            f"SQL, batches of {size}, 2 connections: reserve_many / multi-row INSERT of its rows",
            ">= 0.6",
            seen["reserve_many"],
            seen["INSERT"],
        )


def prepare(postgres: EmbeddedPostgres) -> None:
    """Items 1 to ITEMS with units for all, two with none, the rivals', and the plain tables."""
    with psycopg.connect(postgres.url(), autocommit=True) as conn:
        conn.execute(
            "select flashsale.create_item('i' || n, 'i', 1000, 'EUR', "
            f"case when n <= {ITEMS} then {STOCK} else 0 end, 600, "
            f"p_max_waiting => case when n = {SOLD_OUT} then 0 end) "
            f"from generate_series(1, {SOLD_OUT}) n"
        )
        conn.execute("create schema bench")
        conn.execute("create sequence bench.ticket")
        conn.execute("create table bench.orders (like flashsale_data.orders including all)")
        conn.execute("create table bench.jobs (like pgmq.q_payments including all)")
        for rival in ("counter", "for_update", "units"):
            conn.execute((HERE / "rivals" / f"{rival}.sql").read_bytes())
        conn.execute("vacuum analyze")
    _age(postgres)


def _age(postgres: EmbeddedPostgres) -> None:
    """Makes a new server write its WAL into recycled segments, as a server does that runs for long.

    A new segment is filled with zeros first, and all commits wait for that: 40 ms per 16 MB.
    """
    with psycopg.connect(postgres.url("flashsale", "postgres"), autocommit=True) as conn:
        for _ in range(WAL_SEGMENTS):
            conn.execute("select pg_logical_emit_message(false, 'bench', '')")
            conn.execute("select pg_switch_wal()")
        conn.execute("checkpoint")


def commits(postgres: EmbeddedPostgres, *, simulated: bool) -> None:
    """Makes each commit take a millisecond, as on a real disk, or only its time on this machine."""
    with psycopg.connect(postgres.url("flashsale", "postgres"), autocommit=True) as conn:
        conn.execute(f"alter system set commit_delay = {1000 if simulated else 0}")
        conn.execute(f"alter system set commit_siblings = {0 if simulated else 5}")
        conn.execute("select pg_reload_conf()")


def pgbench(
    postgres: EmbeddedPostgres, text: str, clients: int, seconds: float, each: int = 1
) -> float:
    """Orders per second. each: how many orders a transaction makes."""
    seen = _pgbench(postgres, text, postgres.url(), clients, seconds)
    return round(statistics.mean(rate for rate, _ in seen) * each)


_FIRST_SECONDS = 4.0  # all sessions plan their statements at once


def latency(
    postgres: EmbeddedPostgres,
    text: str,
    url: str,
    clients: int,
    seconds: float,
    rate: int | None = None,
    first: str | None = None,
) -> float:
    """Mean µs per transaction. rate: transactions per second in all; None: as many as possible.

    first: a query that each session runs once, before the measurement starts.
    """
    more = [f"--rate={rate}"] if rate else []
    warm = 0.0
    if first:
        text = f"\\if :begun = 0\n{first};\n\\set begun 1\n\\endif\n{text}"
        more, warm = [*more, "--define=begun=0"], _FIRST_SECONDS
    seen = _pgbench(postgres, text, url, clients, seconds, *more, warm=warm)
    return statistics.mean(ms for _, ms in seen) * 1000


def _pgbench(
    postgres: EmbeddedPostgres,
    text: str,
    url: str,
    clients: int,
    seconds: float,
    *more: str,
    warm: float = 0.0,
) -> list[tuple[float, float]]:
    """Transactions per second and their ms, for each second after all sessions have plans."""
    warm += 1 + clients // 32
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
        file.write(text)
        file.flush()
        result = subprocess.run(
            [
                *(postgres.bin_dir / "pgbench", "-n", "-M", "prepared", "-f", file.name, "-P", "1"),
                *("-c", f"{clients}", "-j", "2", "-T", f"{warm + seconds:.0f}", *more, url),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    seen = re.findall(r"progress: .*? ([\d.]+) tps, lat ([\d.]+) ms", result.stderr)
    if result.returncode or not seen or "failed transactions: 0" not in result.stdout:
        raise SystemExit(f"bench: pgbench failed: {result.stderr.strip() or result.stdout}")
    return [(float(rate), float(ms)) for rate, ms in seen[-math.ceil(seconds) :]]


def query(postgres: EmbeddedPostgres, text: str, *values: Any) -> list[Any]:
    with psycopg.connect(postgres.url(), autocommit=True) as conn:
        return conn.execute(text.encode(), values or None).fetchall()
