"""Plans that were made while the tables were empty, for sessions that live through the storm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from flashsale.embedded import EmbeddedPostgres
from support import Connection, call, connect, item, many, pay, reserve, rows, status, sweep, value

CROWD = 2_000
READ = (
    "select coalesce(sum(seq_tup_read + coalesce(idx_tup_fetch, 0)), 0)::int "
    "from pg_stat_user_tables "
    "where schemaname in ('flashsale_data', 'pgmq') and relname in ('items', 'orders', 'payments', "
    "'order_keys', 'payment_events', 'q_payments', 'q_notifications')"
)


def opened(conn: Connection, order: Any) -> Any:
    (job,) = rows(conn, "select * from flashsale.take_payment_jobs(1, 30)")
    return call(
        conn,
        "payment_opened",
        job.job_id,
        job.tries,
        job.payment_id,
        f"s{job.job_id}",
        "http://pay",
    )


def told(conn: Connection, order: Any) -> Any:
    event = [f"e{order.payment_id}", "payment.succeeded", f"s{order.payment_id}"]
    event += [str(order.payment_id), order.amount, "EUR", None]
    return call(conn, "record_payment_event", *event)


def _read(conn: Connection, query: str = READ) -> int:
    """How many rows were read, this session's included."""
    conn.execute("select pg_stat_force_next_flush()")
    value(conn, "select pg_stat_clear_snapshot()::text")
    return int(value(conn, query))


VERBS: dict[str, Callable[[Connection, Any], Any]] = {
    "reserve": lambda conn, order: reserve(conn, order.item_id, f"new {order.ticket}"),
    "reserve with a key": lambda conn, order: reserve(conn, order.item_id, f"k{order.ticket}", "k"),
    "reserve again": lambda conn, order: reserve(conn, order.item_id, order.customer_id),
    "reserve_many": lambda conn, order: many(conn, order.item_id, [f"n{order.ticket}", "x"]),
    "cancel": lambda conn, order: call(conn, "cancel", order.order_id),
    "pay": lambda conn, order: pay(conn, order),
    "record_payment_event": told,
    "take_payment_jobs, payment_opened": opened,
    "take_notifications": lambda conn, order: (
        call(conn, "cancel", order.order_id),
        rows(conn, "select * from flashsale.take_notifications(5, 30)"),
    ),
    "finish_notifications": lambda conn, order: rows(
        conn, "select flashsale.finish_notifications(array[%s], array[1])", order.ticket
    ),
    "retry_job": lambda conn, order: call(conn, "retry_job", "payments", order.ticket, 0, "down"),
    "orders_by_id": lambda conn, order: rows(
        conn, "select * from flashsale.orders_by_id(array[%s])", order.order_id
    ),
    "explain_order": lambda conn, order: rows(
        conn, "select * from flashsale.explain_order(%s)", order.order_id
    ),
    "request_payment": lambda conn, order: call(conn, "request_payment", order.order_id),
    "order_status": lambda conn, order: status(conn, order.order_id),
    "orders_of": lambda conn, order: rows(
        conn, "select * from flashsale.orders_of(%s)", order.customer_id
    ),
    "sweep": lambda conn, order: (call(conn, "cancel", order.order_id), sweep(conn)),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_plan_from_before_the_storm_reads_no_table_whole(
    db: Connection, database_url: str, verb: str
) -> None:
    shoe = item(db, stock=CROWD * 2)
    db.execute("vacuum analyze")  # what is empty now is believed to stay so
    with connect(database_url) as session:
        for n in range(7):  # after five, a plan may be kept for good
            VERBS[verb](session, reserve(db, shoe, f"early {n}"))
        many(db, shoe, [f"c{n}" for n in range(1000)])
        many(db, shoe, [f"d{n}" for n in range(1000)])
        order = reserve(db, shoe, "late")
        db.execute("select pg_stat_force_next_flush()")
        before = _read(session)
        VERBS[verb](session, order)
        assert _read(session) - before < CROWD / 2


@pytest.mark.parametrize("verb", VERBS)
def test_no_plan_needs_what_is_switched_off(
    postgres: EmbeddedPostgres, db: Connection, verb: str
) -> None:
    """Until PostgreSQL 17 such a plan seems to cost so much that each time it is compiled."""
    shoe = item(db, stock=3)
    name = value(db, "select current_database()")
    plans: list[str] = []
    with connect(postgres.url(name, "postgres")) as session:
        session.execute("load 'auto_explain'")
        session.execute("set auto_explain.log_min_duration = 0")
        session.execute("set auto_explain.log_nested_statements = on")
        session.execute("set client_min_messages = log")
        session.add_notice_handler(lambda said: plans.append(said.message_primary or ""))
        for n in range(7):
            VERBS[verb](session, reserve(db, shoe, f"early {n}"))
            call(db, "restock", shoe, 1)
    own = [plan for plan in plans if "flashsale" in plan]
    assert own
    for plan in own:
        assert "cost=1000000" not in plan, plan  # PostgreSQL 15 to 17
        assert "Disabled: true" not in plan, plan


def test_a_sweep_looks_at_no_hold_that_is_not_due(db: Connection) -> None:
    """The clock is volatile: compared with itself, it would be asked for each hold."""
    shoe = item(db, stock=CROWD)
    many(db, shoe, [f"c{n}" for n in range(1000)])
    read = (
        "select idx_tup_read::int from pg_stat_user_indexes "
        "where indexrelname = 'orders_expires_at_held'"
    )
    sweep(db)
    seen = []
    for _ in range(2):
        seen.append(_read(db, read))
        sweep(db)
    assert seen[1] - seen[0] < 100


def test_what_a_mass_expiry_reads_depends_on_what_is_due(db: Connection, clock: Any) -> None:
    others, shoe = item(db, "others", stock=0), item(db, stock=CROWD, hold_seconds=10)
    for batch in range(20):
        many(db, others, [f"{batch} {n}" for n in range(1000)])
    for batch in range(2 * CROWD // 1000):
        many(db, shoe, [f"{batch} {n}" for n in range(1000)])
    db.execute("vacuum analyze")
    clock.advance(10)
    before = _read(db)
    swept = sweep(db)
    assert (swept.expired, swept.recycled, swept.promoted) == (CROWD, CROWD, CROWD)
    assert _read(db) - before < 10 * CROWD
