"""Orders for several units, and how many units a customer may have."""

from __future__ import annotations

from functools import partial
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from flashsale.testing.clock import Clock
from support import (
    Call,
    Connection,
    blocked,
    call,
    connect,
    eventually,
    item,
    item_status,
    pay,
    reserve,
    rows,
    settle,
    status,
    sweep,
    value,
)


def ask(
    conn: Connection,
    item_id: int,
    customer: str,
    quantity: int = 1,
    minimum: int | None = None,
    *,
    key: str | None = None,
    wait: bool = True,
) -> Any:
    """A request for so many units."""
    return call(conn, "reserve", item_id, customer, key, wait, quantity, minimum)


def ask_all(
    conn: Connection, requests: list[tuple[int, str, int]], keys: list[str | None] | None = None
) -> list[Any]:
    """Requests of (item, customer, quantity) in one batch."""
    items, customers, quantities = zip(*requests, strict=True)
    return rows(
        conn,
        "select * from flashsale.reserve_many(%s, %s, %s, p_quantities => %s)",
        list(items),
        list(customers),
        keys,
        list(quantities),
    )


def tickets(conn: Connection, order: Any) -> list[tuple[int, str]]:
    """The tickets of an order, with their states."""
    return [
        (row.ticket, row.status)
        for row in rows(
            conn,
            "select ticket, status::text from flashsale_data.orders "
            "where %s in (order_id, head_id) order by ticket",
            order.order_id,
        )
    ]


# Granting


def test_a_group_gets_a_ticket_and_a_unit_for_each(db: Connection) -> None:
    shoe = item(db, stock=5, max_per_order=4)
    order = ask(db, shoe, "ann", 3)
    assert (order.outcome, order.ticket, order.quantity, order.units) == ("reserved", 1, 3, 3)
    assert order.amount == 3000
    assert tickets(db, order) == [(1, "reserved"), (2, "reserved"), (3, "reserved")]
    sold = item_status(db, shoe)
    assert (sold.available, sold.issued) == (2, 3)
    assert order._replace(outcome="found") == status(db, order.order_id)
    (job,) = rows(db, "select * from flashsale.take_payment_jobs(10, 30)")
    assert (job.payment_id, job.amount) == (order.order_id, 3000)


def test_a_group_waits_until_its_minimum_is_served(db: Connection) -> None:
    shoe = item(db, stock=4, max_per_order=4)
    bob = ask(db, shoe, "bob", 2)
    cid = ask(db, shoe, "cid")
    ann = ask(db, shoe, "ann", 4, 3)
    dan = ask(db, shoe, "dan")
    assert (ann.outcome, ann.ticket, ann.units, ann.amount) == ("waiting", 4, None, None)
    call(db, "cancel", cid.order_id)
    settle(db)
    assert status(db, ann.order_id).status == "waiting"  # two of its tickets are served
    call(db, "cancel", bob.order_id)
    settle(db)
    ann = status(db, ann.order_id)
    assert (ann.status, ann.units, ann.amount) == ("reserved", 4, 4000)
    assert status(db, dan.order_id).status == "waiting"


def test_a_group_is_granted_what_is_served_and_gives_the_rest_up(db: Connection) -> None:
    shoe = item(db, stock=3, max_per_order=4)
    ann = ask(db, shoe, "ann", 4, 2)
    assert (ann.outcome, ann.quantity, ann.units, ann.amount) == ("reserved", 4, 3, 3000)
    assert tickets(db, ann) == [
        *((n, "reserved") for n in (1, 2, 3)),
        (4, "unserved"),
    ]
    bob = ask(db, shoe, "bob")
    call(db, "cancel", ann.order_id)
    settle(db)
    assert status(db, bob.order_id).status == "reserved"
    sold = item_status(db, shoe)
    assert (sold.available, sold.reserved, sold.waiting) == (2, 1, 0)


def test_a_waiting_group_is_granted_a_part_as_soon_as_that_is_enough(db: Connection) -> None:
    shoe = item(db, stock=2, max_per_order=4)
    cid, dan = ask(db, shoe, "cid"), ask(db, shoe, "dan")
    ann = ask(db, shoe, "ann", 4, 2)
    eve = ask(db, shoe, "eve")
    for order in (cid, dan):
        call(db, "cancel", order.order_id)
    settle(db)
    ann = status(db, ann.order_id)
    assert (ann.status, ann.units, ann.amount) == ("reserved", 2, 2000)
    assert tickets(db, ann) == [(3, "reserved"), (4, "reserved"), (5, "unserved"), (6, "unserved")]
    assert item_status(db, shoe).waiting == 1
    call(db, "cancel", ann.order_id)
    settle(db)
    assert status(db, eve.order_id).status == "reserved"


def test_units_are_set_aside_for_a_group_no_longer_than_a_hold(
    db: Connection, clock: Clock
) -> None:
    shoe = item(db, stock=2, max_per_order=3, hold_seconds=100)
    bob, cid = ask(db, shoe, "bob"), ask(db, shoe, "cid")
    pay(db, bob)
    ann = ask(db, shoe, "ann", 3)
    dan = ask(db, shoe, "dan")
    call(db, "cancel", cid.order_id)
    sweep(db)
    clock.advance(99)
    settle(db)
    assert status(db, ann.order_id).status == "waiting"
    clock.advance(1)
    settle(db)
    ann = status(db, ann.order_id)
    assert (ann.status, ann.units, ann.ended_at) == ("unserved", None, clock.at())
    assert {state for _, state in tickets(db, ann)} == {"unserved"}
    assert status(db, dan.order_id).status == "reserved"
    told = rows(db, "select message ->> 'kind' as kind from flashsale.take_notifications(10, 30)")
    assert "unserved" in [t.kind for t in told]


def test_a_request_that_does_not_wait_takes_no_tickets_if_too_few_are_left(db: Connection) -> None:
    shoe = item(db, stock=3, max_per_order=6)
    refused = ask(db, shoe, "ann", 6, 4, wait=False)
    assert (refused.outcome, refused.order_id) == ("sold_out", None)
    assert item_status(db, shoe).issued == 0
    ann = ask(db, shoe, "ann", 6, 3, wait=False)
    assert (ann.outcome, ann.units) == ("reserved", 3)


def test_the_last_ticket_of_a_group_counts_for_the_length_of_the_line(db: Connection) -> None:
    shoe = item(db, stock=1, max_per_order=3, max_waiting=3)
    assert ask(db, shoe, "ann", 3).outcome == "waiting"
    assert ask(db, shoe, "bob", 2).outcome == "sold_out"
    assert ask(db, shoe, "bob").outcome == "waiting"
    assert ask(db, shoe, "cid").outcome == "sold_out"
    assert item_status(db, shoe).issued == 4


def test_nobody_overtakes_a_group_and_a_group_overtakes_nobody(db: Connection) -> None:
    shoe = item(db, stock=4, max_per_order=4)
    first = [ask(db, shoe, name) for name in ("a", "b", "c", "d")]
    line = [ask(db, shoe, *who) for who in (("ann", 3), ("bob", 1), ("cid", 2), ("dan", 1))]
    states = []
    for order in first:
        call(db, "cancel", order.order_id)
        settle(db)
        states.append([status(db, o.order_id).status[0] for o in line])
    assert states == [
        ["w", "w", "w", "w"],
        ["w", "w", "w", "w"],
        ["r", "w", "w", "w"],
        ["r", "r", "w", "w"],
    ]


# Parts end together with their order


@pytest.mark.parametrize("end", ["cancel", "expire", "pay", "till", "refund", "keep"])
def test_parts_end_together_with_their_order(db: Connection, clock: Clock, end: str) -> None:
    shoe = item(db, stock=4, max_per_order=4, hold_seconds=10)
    ann = ask(db, shoe, "ann", 4, 3)
    bob = ask(db, shoe, "bob", 3)
    if end == "cancel":
        call(db, "cancel", ann.order_id, "ann")
    elif end == "expire":
        clock.advance(10)
    else:
        if end == "till":
            call(db, "pay_offline", ann.order_id, "r1")
        else:
            assert pay(db, ann).outcome == "paid"
        assert value(db, "select sum(paid) from flashsale_data.tallies") == 4
        if end in ("refund", "keep"):
            call(db, "refund_order", ann.order_id, "broken", end == "refund")
    settle(db)
    expected = {"cancel": "cancelled", "expire": "expired", "pay": "paid", "till": "paid"}
    assert {state for _, state in tickets(db, ann)} == {expected.get(end, "refunded")}
    sold = item_status(db, shoe)
    if end in ("pay", "till"):
        assert (sold.paid, sold.reserved, sold.waiting) == (4, 0, 3)
    elif end == "keep":
        assert (sold.stock, sold.paid, sold.waiting, sold.withdrawing) == (0, 0, 3, 0)
    else:
        assert status(db, bob.order_id).units == 3
        assert (sold.available, sold.reserved, sold.paid) == (1, 3, 0)


def test_a_waiting_group_can_leave_the_line(db: Connection) -> None:
    shoe = item(db, stock=1, max_per_order=4)
    ann = ask(db, shoe, "ann")
    bob = ask(db, shoe, "bob", 4)
    cid = ask(db, shoe, "cid")
    call(db, "cancel", bob.order_id, "bob")
    settle(db)
    assert {state for _, state in tickets(db, bob)} == {"cancelled"}
    assert item_status(db, shoe).waiting == 1
    call(db, "cancel", ann.order_id)
    settle(db)
    assert status(db, cid.order_id).status == "reserved"


def test_groups_that_wait_at_the_close_are_unserved(db: Connection) -> None:
    shoe = item(db, stock=1, max_per_order=4)
    ann = ask(db, shoe, "ann", 4)
    call(db, "close_item", shoe)
    assert sweep(db).unserved == 1
    assert {state for _, state in tickets(db, ann)} == {"unserved"}
    settle(db)
    assert item_status(db, shoe).waiting == 0
