"""Plans that were made while the tables were empty must be good enough for the storm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from flashsale.dev.postgres import EmbeddedPostgres
from support import Connection, call, connect, item, many, pay, reserve, rows, settle, sweep, value

CROWD = 2_000
STORMED = "orders order_keys payments payment_events q_payments q_notifications"
"""The tables that a sale fills within seconds. Items and dead letters come slowly, so that
autovacuum has new plans made."""

FILL_UP = f"""
with keys as (
  insert into flashsale_data.order_keys
  select o.customer_id, o.item_id, 'a key of the crowd', o.order_id
  from flashsale_data.orders o
  where o.customer_id is not null
), events as (
  insert into flashsale_data.payment_events (event_id, type, session_id, received_at)
  select 'crowd ' || n, 'other', 'crowd ' || n, now() from generate_series(1, {CROWD}) n
)
select flashsale.enqueue_mail('paid', o.order_ids)::text, flashsale.first_payments(o.order_ids)
from (select array_agg(o.order_id) as order_ids from flashsale_data.orders o) o
"""
"""Every stormed table has at least CROWD rows then."""


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
    session, payment_id = f"s{order.payment_id}", str(order.payment_id)
    event = (f"e{order.payment_id}", "payment.succeeded", session, payment_id)
    return call(conn, "record_payment_event", *event, order.amount, "EUR", None)


def settled(conn: Connection, order: Any) -> Any:
    value(conn, "select flashsale.first_payments(array[%s])::text", order.order_id)
    call(conn, "payment_opened", 0, 0, order.payment_id, f"s{order.payment_id}", "http://pay")
    conn.execute(
        "update flashsale_data.orders set expires_at = clock_timestamp() where order_id = %s",
        [order.order_id],
    )
    assert call(conn, "order_status", order.order_id).status == "settling"
    call(conn, "expire")
    return call(conn, "payment_voided", 0, 0, order.payment_id)


def _read(conn: Connection) -> dict[str, int]:
    """How many rows of each stormed table were read so far, by this session too."""
    conn.execute("select pg_stat_force_next_flush()")
    value(conn, "select pg_stat_clear_snapshot()::text")
    found = rows(
        conn,
        "select relname, seq_tup_read + coalesce(idx_tup_fetch, 0) as read "
        "from pg_stat_user_tables "
        "where schemaname in ('flashsale_data', 'pgmq') and relname = any (%s)",
        STORMED.split(),
    )
    return {row.relname: int(row.read) for row in found}


def letter(conn: Connection, order: Any) -> Any:
    added = (
        "insert into flashsale_data.dead_letters (queue, message, tries, enqueued_at, died_at) "
        "values ('notifications', '{}', 1, now(), now()) returning dead_letter_id"
    )
    return call(conn, "retry_dead_letter", value(conn, added))


def sweep_as_runner(conn: Connection) -> list[Any]:
    return [
        call(conn, "sweep_item", "runner", due.item_id, due.overdue_ids, 1000)
        for due in rows(conn, "select * from flashsale.begin_sweep('runner')")
    ]


def of_order(verb: str, *args: Any) -> Callable[[Connection, Any], Any]:
    return lambda conn, order: rows(
        conn,
        f"select * from flashsale.{verb}({', '.join(['%s'] * (1 + len(args)))})",
        order.order_id,
        *args,
    )


def of_item(verb: str, *args: Any) -> Callable[[Connection, Any], Any]:
    return lambda conn, order: call(conn, verb, order.item_id, *args)


VERBS: dict[str, Callable[[Connection, Any], Any]] = {
    "reserve": lambda conn, order: reserve(conn, order.item_id, f"new {order.ticket}"),
    "reserve with a key": lambda conn, order: reserve(conn, order.item_id, f"k{order.ticket}", "k"),
    "reserve again": lambda conn, order: reserve(conn, order.item_id, order.customer_id),
    "reserve_many": lambda conn, order: many(conn, order.item_id, [f"n{order.ticket}", "x"]),
    "cancel": of_order("cancel"),
    "request_payment": of_order("request_payment"),
    "order_status": of_order("order_status"),
    "explain_order": of_order("explain_order"),
    "orders_by_id": lambda conn, order: rows(
        conn, "select * from flashsale.orders_by_id(array[%s])", order.order_id
    ),
    "orders_of": lambda conn, order: rows(
        conn, "select * from flashsale.orders_of(%s)", order.customer_id
    ),
    "pay": lambda conn, order: pay(conn, order),
    "record_payment_event": told,
    "take_payment_jobs, payment_opened": opened,
    "payment_voided": lambda conn, order: call(conn, "payment_voided", 1, 1, order.payment_id),
    "pay_offline": lambda conn, order: call(
        conn, "pay_offline", order.order_id, f"r{order.order_id}"
    ),
    "refund_order": lambda conn, order: (
        pay(conn, order),
        call(conn, "refund_order", order.order_id, "x"),
    ),
    "a refund at the provider": lambda conn, order: (
        pay(conn, order),
        call(
            conn,
            "record_payment_event",
            f"r{order.payment_id}",
            "payment.refunded",
            f"s{order.payment_id}",
            str(order.payment_id),
            None,
            None,
            None,
        ),
    ),
    "note_provider": lambda conn, order: (
        call(conn, "note_provider", True),
        call(conn, "note_provider", False),
    ),
    "a void": lambda conn, order: (
        opened(conn, order),
        call(conn, "cancel", order.order_id),
        rows(conn, "select * from flashsale.take_payment_jobs(5, 30)"),
    ),
    "settling": settled,
    "payment_captured": lambda conn, order: call(
        conn, "payment_captured", 1, 1, order.payment_id, f"c{order.ticket}", 1000, "EUR"
    ),
    "payment_refunded": lambda conn, order: call(conn, "payment_refunded", 1, 1, order.payment_id),
    "take_notifications": lambda conn, order: (
        call(conn, "cancel", order.order_id),
        rows(conn, "select * from flashsale.take_notifications(5, 30)"),
    ),
    "finish_notifications": lambda conn, order: rows(
        conn, "select flashsale.finish_notifications(array[%s], array[1])", order.ticket
    ),
    "retry_job": lambda conn, order: call(conn, "retry_job", "payments", order.ticket, 0, "down"),
    "retry_job, the last time": lambda conn, order: call(
        conn, "retry_job", "payments", order.ticket, 300, "down"
    ),
    "retry_dead_letter": letter,
    "item_status": of_item("item_status"),
    "items": lambda conn, order: rows(
        conn, "select * from flashsale.items(1, %s)", order.item_id - 1
    ),
    "restock": of_item("restock", 1),
    "withdraw": of_item("withdraw", 1),
    "open_item": of_item("open_item"),
    "close_item": of_item("close_item"),
    "pause_item, resume_item": lambda conn, order: (
        call(conn, "pause_item", order.item_id),
        call(conn, "resume_item", order.item_id),
    ),
    "promote": of_item("promote"),
    "fill": lambda conn, order: [call(conn, "fill", order.item_id) for _visit in range(3)],
    "expire": lambda conn, order: call(conn, "expire"),
    "sweep": lambda conn, order: (
        call(conn, "cancel", order.order_id),
        [sweep(conn) for _visit in range(3)],
    ),
    "begin_sweep, sweep_item": lambda conn, order: (
        call(conn, "cancel", order.order_id),
        [sweep_as_runner(conn) for _visit in range(3)],
    ),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_plan_from_before_the_storm_reads_no_table_whole(
    db: Connection, database_url: str, verb: str
) -> None:
    shoe = item(db, stock=CROWD * 2)
    db.execute("vacuum analyze")  # so that the planner believes that the tables are empty
    with connect(database_url) as session:
        for n in range(7):  # after five, a plan may be kept for good
            VERBS[verb](session, reserve(db, shoe, f"early {n}"))
            if verb == "close_item":
                call(db, "open_item", shoe)
        many(db, shoe, [f"c{n}" for n in range(1000)])
        many(db, shoe, [f"d{n}" for n in range(1000)])
        db.execute(FILL_UP)
        VERBS[verb](session, reserve(db, shoe, "not measured"))  # does the work that has piled up
        if verb == "close_item":
            call(db, "open_item", shoe)
        order = reserve(db, shoe, "late")
        db.execute("select pg_stat_force_next_flush()")
        before = _read(session)
        VERBS[verb](session, order)
        read = {table: total - before[table] for table, total in _read(session).items()}
        assert {table: n for table, n in read.items() if n >= CROWD} == {}


@pytest.mark.parametrize("verb", VERBS)
def test_no_plan_needs_a_sequential_scan_where_that_is_off(
    postgres: EmbeddedPostgres, db: Connection, verb: str
) -> None:
    """Up to PostgreSQL 17 the cost of such a plan seems so high that jit compiles it every time."""
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
    """The clock is volatile, so an index can't be used for a comparison with clock() itself."""
    shoe = item(db, stock=CROWD)
    many(db, shoe, [f"c{n}" for n in range(1000)])
    read = (
        "select idx_tup_read::int from pg_stat_user_indexes "
        "where indexrelname = 'orders_expires_at_held'"
    )
    sweep(db)
    seen = []
    for _ in range(2):
        _read(db)  # flushes the statistics
        seen.append(value(db, read))
        sweep(db)
    assert seen[1] - seen[0] < 100


def test_a_mass_expiry_reads_only_what_is_due(db: Connection, clock: Any) -> None:
    others, shoe = item(db, "others", stock=0), item(db, stock=CROWD, hold_seconds=10)
    for batch in range(20):
        many(db, others, [f"{batch} {n}" for n in range(1000)])
    for batch in range(2 * CROWD // 1000):
        many(db, shoe, [f"{batch} {n}" for n in range(1000)])
    settle(db)  # tells the feed of them
    db.execute("vacuum analyze")
    clock.advance(10)
    before = sum(_read(db).values())
    swept = sweep(db)
    assert (swept.expired, swept.recycled, swept.promoted) == (CROWD, CROWD, CROWD)
    assert sum(_read(db).values()) - before < 10 * CROWD
