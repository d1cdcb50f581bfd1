"""Reserving, one request at a time and in batches: units, places in the line, keys, refusals."""

from __future__ import annotations

from itertools import product
from typing import Any

import psycopg
import pytest

from flashsale.testing.clock import Clock
from support import (
    Connection,
    call,
    item,
    item_status,
    many,
    pay,
    reserve,
    rows,
    settle,
    status,
    sweep,
    value,
)


def test_first_customers_get_units_and_the_others_a_place_in_the_line(db: Connection) -> None:
    shoe = item(db, stock=2)
    orders = [reserve(db, shoe, name) for name in ("ann", "bob", "cid", "dan")]
    assert [(o.outcome, o.ticket, o.position) for o in orders] == [
        ("reserved", 1, None),
        ("reserved", 2, None),
        ("waiting", 3, 1),
        ("waiting", 4, 2),
    ]


def test_a_reservation_has_a_fixed_deadline_and_a_payment(db: Connection) -> None:
    shoe = item(db, hold_seconds=90)
    order = reserve(db, shoe, "ann")
    assert (order.expires_at - order.reserved_at).total_seconds() == 90
    assert (order.payment_status, order.amount, order.currency) == ("requested", 1000, "EUR")
    assert reserve(db, shoe, "ann").expires_at == order.expires_at


def test_a_customer_who_asks_again_gets_the_same_order(db: Connection) -> None:
    shoe = item(db)
    first, second = reserve(db, shoe, "ann"), reserve(db, shoe, "ann")
    assert second.outcome == "existing"
    assert second[1:] == first[1:]


def test_a_repeated_request_finds_a_paid_order_too(db: Connection) -> None:
    shoe = item(db)
    order = reserve(db, shoe, "ann")
    pay(db, order)
    again = reserve(db, shoe, "ann")
    assert (again.outcome, again.status, again.order_id) == ("existing", "paid", order.order_id)


def test_a_key_finds_its_order_even_after_it_ended(db: Connection) -> None:
    shoe = item(db)
    order = reserve(db, shoe, "ann", "k1")
    call(db, "cancel", order.order_id, "ann")
    late = reserve(db, shoe, "ann", "k1")
    assert (late.outcome, late.order_id, late.status) == ("existing", order.order_id, "cancelled")
    fresh = reserve(db, shoe, "ann", "k2")
    assert fresh.order_id != order.order_id


def test_a_key_that_was_answered_with_an_existing_order_keeps_it(db: Connection) -> None:
    shoe = item(db)
    order = reserve(db, shoe, "ann", "k1")
    assert reserve(db, shoe, "ann", "k2").order_id == order.order_id
    call(db, "cancel", order.order_id, "ann")
    assert reserve(db, shoe, "ann", "k2").order_id == order.order_id


def test_keys_belong_to_one_customer_and_item(db: Connection) -> None:
    shoe, hat = item(db), item(db, "hat")
    orders = [
        reserve(db, shoe, "ann", "k"),
        reserve(db, shoe, "bob", "k"),
        reserve(db, hat, "ann", "k"),
    ]
    assert len({o.order_id for o in orders}) == 3


def test_an_overdue_hold_ends_when_its_customer_requests_a_unit_again(
    db: Connection, clock: Clock
) -> None:
    shoe = item(db, hold_seconds=10)
    first = reserve(db, shoe, "ann")
    clock.advance(10)
    second = reserve(db, shoe, "ann")
    assert (second.outcome, second.ticket) == ("waiting", 2)
    assert status(db, first.order_id).status == "expired"
    sweep(db)
    assert status(db, second.order_id).status == "reserved"


def test_a_batch_with_an_overdue_hold_serves_everybody(db: Connection, clock: Clock) -> None:
    shoe = item(db, stock=3, hold_seconds=10)
    old = reserve(db, shoe, "bob", "old")
    clock.advance(11)
    batch = rows(
        db,
        "select * from flashsale.reserve_many(%s, %s, %s)",
        [shoe] * 4,
        ["ann", "bob", "cid", "bob"],
        ["a", "b", None, "old"],
    )
    assert [(o.outcome, o.ticket) for o in batch] == [
        ("reserved", 2),
        ("reserved", 3),
        ("waiting", 4),
        ("existing", 1),
    ]
    assert batch[3].order_id == old.order_id
    assert value(db, "select count(*) from flashsale_data.order_keys") == 3


def test_a_batch_gives_each_request_its_own_answer(db: Connection) -> None:
    shoe, hat = item(db, stock=2), item(db, "hat")
    call(db, "pause_item", hat)
    batch = rows(
        db,
        "select * from flashsale.reserve_many(%s, %s, %s, %s)",
        [shoe, 999, hat, shoe, shoe, None, shoe, shoe],
        ["ann", "bob", "cid", "", "ann", "eve", "x" * 129, "fay"],
        ["k", None, None, None, None, None, None, "y" * 256],
        [True] * 8,
    )
    assert [o.outcome for o in batch] == [
        "reserved",
        "unknown_item",
        "paused",
        "invalid",
        "existing",
        "invalid",
        "invalid",
        "invalid",
    ]
    assert [o.order_id for o in batch if o.outcome not in ("reserved", "existing")] == [None] * 6


@pytest.mark.parametrize("again", [[], ["ann"]], ids=["at once", "in two rounds"])
def test_a_batch_returns_an_order_as_order_status_shows_it(
    db: Connection, again: list[str]
) -> None:
    shoe = item(db, stock=2)
    reserve(db, shoe, "zoe")
    customers = ["ann", "bob", "zoe", *again]
    batch = many(db, shoe, customers)
    assert [o.outcome for o in batch] == [
        "reserved",
        "waiting",
        "existing",
        *["existing"] * len(again),
    ]
    for order in batch:
        shown = status(db, order.order_id)
        assert (shown.chance is not None) == (shown.status == "waiting")
        if order.outcome == "waiting" and not again:  # a new place in the line has no forecast yet
            shown = shown._replace(chance=None, forecast_as_of=None)
        assert order._replace(outcome="found") == shown


def test_tickets_follow_the_order_of_the_batch_not_of_the_names(db: Connection) -> None:
    shoe = item(db)
    batch = many(db, shoe, ["zoe", "ann", "max"])
    assert [(o.customer_id, o.ticket) for o in batch] == [("zoe", 1), ("ann", 2), ("max", 3)]


def test_a_refusal_takes_no_ticket_and_writes_nothing(db: Connection, clock: Clock) -> None:
    closed = item(db, "closed")
    call(db, "close_item", closed)
    paused = item(db, "paused")
    call(db, "pause_item", paused)
    later = item(db, "later", opens_at=clock.at(60))
    full = item(db, "full", stock=0, max_waiting=0)
    batch = rows(
        db,
        "select * from flashsale.reserve_many(%s, %s, %s)",
        [closed, paused, later, full],
        ["ann"] * 4,
        ["k"] * 4,
    )
    assert [o.outcome for o in batch] == ["closed", "paused", "not_open", "sold_out"]
    assert batch[2].retry_at == clock.at(60)
    assert value(db, "select count(*) from flashsale_data.orders") == 0
    assert value(db, "select count(*) from flashsale_data.order_keys") == 0
    assert value(db, "select sum(issued) from flashsale.item_status") == 0


def items_in_every_state(db: Connection, clock: Clock) -> list[int]:
    """In each, ann has a hold or a place in line, bob had one that is over; there are no others."""
    terms = {
        "open": {"stock": 99},
        "line": {"stock": 0},
        "full": {"stock": 0},
        "later": {"stock": 99},
        "closed": {"stock": 99},
        "closed and paused": {"stock": 99},
        "paused before it opens": {"stock": 99},
    }
    items = {sku: item(db, sku, hold_seconds=100, **terms[sku]) for sku in terms}
    for item_id in items.values():
        call(db, "cancel", reserve(db, item_id, "bob", "old").order_id)
        reserve(db, item_id, "ann", "known")
        reserve(db, item_id, "cid")
    clock.advance(1)
    call(db, "change_item", items["full"], '{"max_waiting": 0}')
    for sku in ("later", "paused before it opens"):
        call(db, "change_item", items[sku], f'{{"opens_at": "{clock.at(60).isoformat()}"}}')
    for sku in ("closed and paused", "paused before it opens"):
        call(db, "pause_item", items[sku])
    for sku in ("closed", "closed and paused"):
        call(db, "close_item", items[sku])
    settle(db)
    return list(items.values())


def asked(db: Connection, request: tuple[Any, ...], *, alone: bool) -> tuple[Any, ...]:
    """The answer and the written rows, without the parts of a new order that its ticket decides."""
    issued = "select sum(issued) from flashsale.item_status"
    before = value(db, issued)
    with db.transaction(force_rollback=True):
        if alone:
            row = call(db, "reserve", *request)
        else:
            query = "array[%s], array[%s], array[%s], array[%s]"
            (row,) = rows(db, f"select * from flashsale.reserve_many({query})", *request)
        tables = ("flashsale_data.orders", "flashsale_data.order_keys", "pgmq.q_payments")
        written = [value(db, f"select count(*) from {table}") for table in tables]
    if row.outcome in ("reserved", "waiting"):
        row = row._replace(order_id=None, ticket=None, position=None, payment_id=None)
    return row, written, value(db, issued) - before


def test_a_single_request_gets_the_same_answer_as_in_a_batch(db: Connection, clock: Clock) -> None:
    items = items_in_every_state(db, clock)
    outcomes = set()
    for overdue in (False, True):
        if overdue:
            clock.advance(100)
        for request in product(
            items, ("ann", "bob", "cid", "eve"), (None, "known", "old"), (True, False)
        ):
            answer = asked(db, request, alone=True)
            assert answer == asked(db, request, alone=False), request
            outcomes.add(answer[0].outcome)
    assert outcomes == {
        *("reserved", "waiting", "existing", "sold_out", "closed", "paused", "not_open"),
        "key_reused",  # with another wait than its first request
    }


def test_a_sale_opens_and_closes_by_the_clock(db: Connection, clock: Clock) -> None:
    shoe = item(db, stock=5, opens_at=clock.at(10), closes_at=clock.at(20))
    assert reserve(db, shoe, "ann").outcome == "not_open"
    clock.advance(10)
    assert reserve(db, shoe, "ann").outcome == "reserved"
    clock.advance(10)
    assert reserve(db, shoe, "bob").outcome == "closed"
    assert reserve(db, shoe, "ann").outcome == "existing"


def test_a_customer_who_does_not_want_to_wait_gets_sold_out(db: Connection) -> None:
    shoe = item(db)
    assert call(db, "reserve", shoe, "ann", None, False).outcome == "reserved"
    assert call(db, "reserve", shoe, "bob", None, False).outcome == "sold_out"
    assert call(db, "reserve", shoe, "bob", None, True).position == 1


def test_the_line_is_never_longer_than_max_waiting(db: Connection) -> None:
    shoe = item(db, max_waiting=2)
    outcomes = [o.outcome for o in many(db, shoe, [f"c{n}" for n in range(6)])]
    assert outcomes == ["reserved", "waiting", "waiting", "sold_out", "sold_out", "sold_out"]


def test_a_place_in_a_full_line_is_free_again_when_its_customer_leaves(db: Connection) -> None:
    shoe = item(db, max_waiting=2)
    batch = many(db, shoe, [f"c{n}" for n in range(6)])
    call(db, "cancel", batch[1].order_id, "c1")
    settle(db)
    assert reserve(db, shoe, "ann").outcome == "waiting"
    assert reserve(db, shoe, "bob").outcome == "sold_out"
    assert item_status(db, shoe).waiting == 2


def test_misuse_is_an_error_that_says_what_to_do(db: Connection) -> None:
    shoe = item(db)
    for args, code, hint in [
        ((999, "ann"), "RV101", "items()"),
        ((shoe, ""), "RV301", "1 to 128"),
        ((shoe, "x" * 129), "RV301", "1 to 128"),
        ((shoe, None), "RV301", "1 to 128"),
        ((shoe, "ann", ""), "RV301", "1 to 255"),
    ]:
        with pytest.raises(psycopg.Error) as error:
            call(db, "reserve", *args)
        assert error.value.sqlstate == code
        assert hint in (error.value.diag.message_hint or "")


def test_a_batch_of_unequal_arrays_or_over_a_thousand_is_refused(db: Connection) -> None:
    shoe = item(db)
    for items, customers in [([shoe], ["ann", "bob"]), ([shoe] * 1001, ["ann"] * 1001)]:
        with pytest.raises(psycopg.Error) as error:
            rows(db, "select * from flashsale.reserve_many(%s, %s)", items, customers)
        assert error.value.sqlstate == "RV301"
    assert rows(db, "select * from flashsale.reserve_many('{}', '{}')") == []


def test_a_rolled_back_reservation_leaves_no_trace_but_a_hole(db: Connection) -> None:
    shoe = item(db)
    with db.transaction(force_rollback=True):
        assert reserve(db, shoe, "ann").ticket == 1
    assert reserve(db, shoe, "bob").outcome == "waiting"
    settle(db)
    assert (
        value(db, "select status from flashsale.order_status where customer_id = 'bob'")
        == "reserved"
    )
