"""The cost of one call in Postgres: its CPU time without clients, network and disk.

A loop in the server calls and commits, so the set-up of each transaction is included. The sides
take turns. This shows effects of a change that are too small to be seen in the rate of 32 clients.
"""

from __future__ import annotations

import time

import psycopg

from bench import sql
from bench.report import BenchReport

TIMES = 4_000
BATCHES = 20
BATCH = 256
CALLS = {
    "nothing": "bench.nothing()",
    "plain INSERT of an order": "bench.insert('p' || {run} || '-' || n)",
    "reserve, joining the line": f"flashsale.reserve({sql.FULL}, 'w' || {{run}} || '-' || n)",
    "reserve": "flashsale.reserve(1, 'r' || {run} || '-' || n)",
    "reserve, with a key": "flashsale.reserve(1, 'k' || {run} || '-' || n, 'k')",
    "reserve, sold out": f"flashsale.reserve({sql.SOLD_OUT}, 's' || {{run}} || '-' || n)",
    "reserve, asked again": "flashsale.reserve(1, 'r' || {run} || '-' || n)",
    "order_status": "flashsale.order_status(flashsale.order_id_of(1, n))",
    "item_status": "flashsale.item_status(1)",
}
FUNCTIONS = """
create function bench.nothing() returns void language plpgsql as $$ begin end $$;
create function bench.insert(p_customer text) returns void language plpgsql as $$
begin
  insert into bench.orders (
    order_id, item_id, ticket, customer_id, status, created_at, reserved_at, expires_at)
  select t, 1, t, p_customer, 'waiting', clock_timestamp(), null, null
  from nextval('bench.ticket') t;
end $$;
"""


def run(report: BenchReport) -> None:
    with sql.server(report, fsync="off", synchronous_commit="off") as postgres:
        sql.prepare(postgres)
        with psycopg.connect(postgres.url(), autocommit=True) as conn:
            conn.execute(FUNCTIONS)
            seen: dict[str, list[float]] = {}
            for number in range(report.rounds + 1):  # the first warms up
                for name, call in CALLS.items():
                    cost = _loop(conn, call.format(run=number))
                    seen.setdefault(name, []).append(cost)
                costs = _batches(conn, number) | life_of_a_sale(conn, f"s{number}")
                for name, cost in costs.items():
                    seen.setdefault(name, []).append(cost)
    report.raw["SQL, µs of a call in a transaction"] = seen
    for name, rounds in seen.items():
        report.figure(f"SQL, one session, no disk: {name}, µs", "", rounds[1:])


def _loop(conn: psycopg.Connection, call: str, times: int = TIMES) -> float:
    """µs per call. In `call`, n is the number of the call."""
    began = time.monotonic()
    conn.execute(
        f"do $d$ begin for n in 1..{times} loop perform {call}; commit; end loop; end $d$".encode()
    )
    return (time.monotonic() - began) / times * 1e6


def life_of_a_sale(conn: psycopg.Connection, sku: str) -> dict[str, float]:
    """An item of 2,000 units and 3,000 customers: half of the holds are paid, half expire.

    The other customers wait and are promoted to the units that expire, one or 100 per call.
    """
    row = conn.execute(
        "select item_id from flashsale.create_item(%s, 'i', 1000, 'EUR', 2000, 600)", [sku]
    ).fetchone()
    assert row is not None
    (item,) = row
    for thousand in range(3):
        conn.execute(
            "select count(*) from flashsale.reserve_many(array_fill(%s, array[1000]), "
            "(select array_agg(format('%%s-%%s', %s::text, i)) from generate_series(1, 1000) i))",
            [item, thousand],
        )
    take = _loop(conn, "flashsale.take_payment_jobs(100, 600)", 20)
    order = f"flashsale.order_id_of({item}, n)"
    pay = _loop(conn, f"flashsale.pay({order}, '{sku}-' || n, 1000, 'EUR')", 1000)
    conn.execute(
        "update flashsale_data.orders set created_at = created_at - interval '1 hour', "
        "reserved_at = reserved_at - interval '1 hour', expires_at = clock_timestamp() "
        "where item_id = %s and status = 'reserved'",
        [item],
    )
    expire = _loop(conn, "flashsale.expire(100)", 10)
    promote = _loop(conn, f"flashsale.promote({item}, 1)", 500)
    promote_100 = _loop(conn, f"flashsale.promote({item}, 100)", 5)
    return {
        "take_payment_jobs of 100, a job": take / 100,
        "pay": pay,
        "expire of 100, an order": expire / 100,
        "promote of 1": promote,
        "promote of 100, an order": promote_100 / 100,
    }


def _batches(conn: psycopg.Connection, run: int) -> dict[str, float]:
    """µs per order."""
    costs = {}
    many = (
        "select count(*) from flashsale.reserve_many(array_fill({item}, array[{size}]), "
        "(select array_agg('b{run}-{n}-' || i) from generate_series(1, {size}) i))"
    )
    rows = sql.same_rows(BATCH).removeprefix(sql.NEW_CUSTOMER).replace(":c", "{run} || '-{n}-'")
    for name, text in {
        f"reserve_many of {BATCH}, an order": many.replace("{item}", "1"),
        f"reserve_many of {BATCH}, sold out, a request": many.replace("{item}", f"{sql.SOLD_OUT}"),
        f"multi-row INSERT of {BATCH}, an order": rows,
    }.items():
        began = time.monotonic()
        for n in range(BATCHES):
            conn.execute(
                text.replace("{run}", f"{run}")
                .replace("{n}", f"{n}")
                .replace("{size}", f"{BATCH}")
                .encode()
            )
        costs[name] = (time.monotonic() - began) / BATCHES / BATCH * 1e6
    return costs
