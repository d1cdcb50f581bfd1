"""Each promise of flashsale.violation finds what breaks it: here each is broken on purpose."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from support import Connection, call, item, many, pay, reserve, rows, settle, statuses, value

ITEM = "update flashsale_data.items set "
ORDER = "update flashsale_data.orders set "
PAYMENT = "update flashsale_data.payments set "
BREAKS: dict[str, tuple[str, str]] = {
    "a part that goes its own way": (
        "a part belongs to its order",
        ORDER + "status = 'cancelled', ended_at = now() where head_id = {group}",
    ),
    "a part of another item": (
        "a part belongs to its order",
        ORDER + "head_id = {reserved} where head_id = {group}",
    ),
    "a part with a deadline": (
        "a part belongs to its order",
        ORDER + "expires_at = now() + interval '1 hour' where head_id = {group}",
    ),
    "a ticket is missing": (
        "an order has its tickets and units",
        ORDER + "quantity = 3 where order_id = {group}",
    ),
    "a unit is missing": (
        "an order has its tickets and units",
        ORDER + "units = 1 where order_id = {group}",
    ),
    "fewer units than are of use": (
        "an order has its tickets and units",
        ORDER + "min_quantity = 3 where order_id = {group}",
    ),
    "more units than allowed": (
        "nobody is over their limit",
        ITEM + "highest_limit = 1 where item_id = {hat}",
    ),
    "a unit that is set aside for an hour": (
        "no unit is set aside for too long",
        ORDER + "part_served_at = now() - interval '1 hour' where order_id = {waiting_group}",
    ),
    "a hold that does not count": (
        "an order makes sense",
        ORDER + "may_buy_again = true where order_id = {reserved}",
    ),
    "an entry after the draw": (
        "a draw leaves nobody out",
        ITEM + "draw = 'drawn' where item_id = {cap}",
    ),
    "a place that the secret does not give": (
        "a draw is as its secret says",
        "update flashsale_data.draws set list_hash = secret where item_id = {cap}; "
        "insert into flashsale_data.drawn_entries (entry_id, order_id, quantity) "
        "values ({entry}, {cap}::bigint << 32 | 2, 1); " + ITEM + "draw = 'drawn' "
        "where item_id = {cap}",
    ),
    "oversold": (
        "oversold",
        ITEM + "stock = 2, forfeited = forfeited + 1 where item_id = {shoe}",
    ),
    "served out of turn": (
        "served out of turn",
        ORDER + "status = 'reserved', reserved_at = now(), expires_at = now() + interval '1 hour' "
        "where order_id = {waiting}",
    ),
    "recycled out of turn": (
        "served out of turn",
        ORDER + "status = 'unserved', ended_at = now(), recycled = true where order_id = {waiting}",
    ),
    "forfeits are counted once": (
        "forfeits are counted once",
        ITEM + "forfeited = forfeited + 1, stock = stock - 1 where item_id = {shoe}",
    ),
    "every settled ticket has its order": (
        "every settled ticket has its order",
        "delete from flashsale_data.orders where order_id = {cancelled}",
    ),
    "paid adds up": ("counters add up", ITEM + "paid = paid + 1 where item_id = {shoe}"),
    "gaps add up": (
        "counters add up",
        ITEM + "gaps_in_line = gaps_in_line + 1 where item_id = {shoe}",
    ),
    "tallies add up": (
        "counters add up",
        "insert into flashsale_data.tallies values ({shoe}, 1, 0)",
    ),
    "a ticket that the line has not given out": (
        "every ticket is of its line",
        "insert into flashsale_data.orders (order_id, item_id, ticket, customer_id, status, "
        "created_at) values (({shoe}::bigint << 32) + 7, {shoe}, 7, 'gus', 'waiting', now())",
    ),
    "no such item": (
        "every ticket is of its line",
        "insert into flashsale_data.orders (order_id, item_id, ticket, customer_id, status, "
        "created_at) values ((99::bigint << 32) + 1, 99, 1, 'ann', 'waiting', now())",
    ),
    "another id": (
        "an order makes sense",
        ORDER + "order_id = order_id + 100 where order_id = {waiting}",
    ),
    "a ticket of nobody": (
        "an order makes sense",
        "insert into flashsale_data.orders (order_id, item_id, ticket, customer_id, status, "
        "created_at) values ({shoe}::bigint << 32, {shoe}, 0, 'gus', 'waiting', now())",
    ),
    "a void order with a customer": (
        "an order makes sense",
        ORDER + "status = 'void' where order_id = {cancelled}",
    ),
    "a hold without its deadline": (
        "an order makes sense",
        ORDER + "expires_at = null where order_id = {reserved}",
    ),
    "a hold without its beginning": (
        "an order makes sense",
        ORDER + "reserved_at = null where order_id = {reserved}",
    ),
    "a deadline before the hold": (
        "an order makes sense",
        ORDER + "expires_at = reserved_at where order_id = {reserved}",
    ),
    "a hold that never was": (
        "an order makes sense",
        ORDER + "reserved_at = null, expires_at = null where order_id = {reserved}",
    ),
    "expired too early": (
        "an order makes sense",
        ORDER + "status = 'expired', ended_at = now() where order_id = {reserved}",
    ),
    "recycled although it has not ended": (
        "an order makes sense",
        ORDER + "recycled = true where order_id = {reserved}",
    ),
    "paid without a payment": (
        "paid means paid for",
        "delete from flashsale_data.payments where order_id = {paid}",
    ),
    "money for an order that is not paid": (
        "money buys an order or goes back",
        PAYMENT + "order_id = {cancelled} where order_id = {paid}",
    ),
    "a success without a session": (
        "a success has its session",
        PAYMENT + "session_id = null where order_id = {paid}",
    ),
    "a success with a session and a reference": (
        "a success has its session",
        PAYMENT + "reference = 'r' where order_id = {paid}",
    ),
    "a reference that is not known": (
        "a reference pays one order",
        PAYMENT + "reference = 'r', session_id = null where order_id = {paid}",
    ),
    "a refund without a payment": (
        "a refund gives the money back once",
        ORDER + "status = 'refunded', ended_at = now() where order_id = {paid}",
    ),
    "settling without a limit": (
        "an order makes sense",
        ORDER + "status = 'settling' where order_id = {reserved}",
    ),
    "a limit without settling": (
        "an order makes sense",
        ORDER + "settle_until = expires_at where order_id = {reserved}",
    ),
    "settling before the deadline": (
        "an order makes sense",
        ORDER + "status = 'settling', settle_until = reserved_at where order_id = {reserved}",
    ),
    "refunded before it was paid": (
        "an order makes sense",
        ORDER + "status = 'refunded', ended_at = paid_at - interval '1 s' where order_id = {paid}",
    ),
    "a deadline of who waits": (
        "an order makes sense",
        ORDER + "status = 'waiting' where order_id = {reserved}",
    ),
    "late money for an order that is not over": (
        "an order makes sense",
        ORDER + "late_order_id = {paid} where order_id = {reserved}",
    ),
    "late money for somebody else's order": (
        "an order makes sense",
        ORDER + "status = 'expired', ended_at = expires_at, late_order_id = {paid} "
        "where order_id = {reserved}",
    ),
    "a settling order's session without a void": (
        "a payment that is due has its job",
        "update flashsale_data.orders set status = 'settling', settle_until = expires_at "
        "where order_id = {reserved}; update flashsale_data.payments set status = 'open', "
        "session_id = 's-cid', order_id = {reserved} where order_id = {requested}",
    ),
    "a failed session that can still be paid without a void": (
        "a payment that is due has its job",
        "update flashsale_data.payments set status = 'failed', payable = true, "
        "ended_at = now(), session_id = 's-cid', order_id = {cancelled} "
        "where order_id = {requested}",
    ),
    "a payment of no order": (
        "a payment has its order",
        PAYMENT + "order_id = 1 where order_id = {paid}",
    ),
    "a hold without a job": (
        "a payment that is due has its job",
        "delete from pgmq.q_payments where message ->> 'payment_id' = {reserved}::text",
    ),
    "a request without a job": (
        "a payment that is due has its job",
        "delete from pgmq.q_payments where message ->> 'payment_id' = {requested}::text",
    ),
    "a refund without a job": (
        "a payment that is due has its job",
        "delete from pgmq.q_payments where message ->> 'kind' = 'refund'",
    ),
    "an ended order's open payment without a void": (
        "a payment that is due has its job",
        "delete from pgmq.q_payments where message ->> 'kind' = 'void'",
    ),
    "a key of no order": (
        "a key leads to its order",
        "update flashsale_data.order_keys set order_id = 1",
    ),
    "a key of another customer's order": (
        "a key leads to its order",
        "update flashsale_data.order_keys set order_id = {paid}",
    ),
    "noted in another cluster": (
        "what is noted is of this cluster",
        ITEM + "noted_xid = '99999999999', settled = settled - 1 where item_id = {shoe}",
    ),
    "filling is far behind": (
        "filling keeps up",
        ITEM + "settled = settled - 1, noted_at = now() - interval '11 minutes' "
        "where item_id = {shoe}",
    ),
}


@pytest.fixture
def sale(db: Connection) -> Iterator[dict[str, int]]:
    """A sale with an order in each state that the breaks need; what a test does is rolled back."""
    shoe = item(db, stock=3)
    ann, bob, cid = many(db, shoe, ["ann", "bob", "cid"])
    for job in rows(db, "select * from flashsale.take_payment_jobs(10, 30)"):
        if job.customer_id != "cid":
            session = f"s-{job.customer_id}"
            call(db, "payment_opened", job.job_id, job.tries, job.payment_id, session, "http://pay")
    pay(db, ann, "s-ann")
    dan, eve, fay = (reserve(db, shoe, name, f"key of {name}") for name in ("dan", "eve", "fay"))
    call(db, "cancel", fay.order_id)
    call(db, "cancel", bob.order_id)
    call(db, "pay", None, "a stray", 5, "EUR")
    hat = item(db, "hat", stock=3, max_per_order=2)
    group, waiting_group = (call(db, "reserve", hat, c, None, True, 2) for c in ("gus", "hal"))
    cap = item(db, "cap", opens_at="2900-01-01 00:00Z", draw=True)
    entry = reserve(db, cap, "ida")
    settle(db)
    assert statuses(db, shoe) == {
        "ann": "paid",
        "bob": "cancelled",
        "cid": "reserved",
        "dan": "reserved",
        "eve": "waiting",
        "fay": "cancelled",
    }
    with db.transaction(force_rollback=True):
        yield {
            "shoe": shoe,
            "paid": ann.order_id,
            "requested": cid.order_id,
            "reserved": dan.order_id,
            "waiting": eve.order_id,
            "cancelled": fay.order_id,
            "hat": hat,
            "group": group.order_id,
            "waiting_group": waiting_group.order_id,
            "cap": cap,
            "entry": entry.order_id,
        }


@pytest.mark.parametrize("broken", BREAKS)
def test_a_broken_promise_is_a_row(db: Connection, sale: dict[str, int], broken: str) -> None:
    promise, statement = BREAKS[broken]
    assert rows(db, "select * from flashsale.violation") == []
    db.execute(statement.format(**sale).encode())
    assert promise in {v.promise for v in rows(db, "select * from flashsale.violation")}


def test_every_promise_is_broken_here(db: Connection) -> None:
    definition = value(db, "select pg_get_viewdef('flashsale.violation'::regclass)")
    promises = set(re.findall(r"SELECT '([^']+)'(?:::text)? AS promise", definition))
    promises |= set(re.findall(r"SELECT '([^']+)'(?:::text)?(?: AS \w+)?,\s+\w+\.?", definition))
    assert {promise for promise, _ in BREAKS.values()} == promises


def test_filling_that_nobody_tries_is_not_behind(db: Connection, sale: dict[str, int]) -> None:
    db.execute("update flashsale_data.sweepers set swept_at = swept_at - interval '1 hour'")
    db.execute(BREAKS["filling is far behind"][1].format(**sale).encode())
    assert rows(db, "select * from flashsale.violation") == []
