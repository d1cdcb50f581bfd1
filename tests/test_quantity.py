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


def test_an_outage_gives_a_group_back_to_the_line_as_a_whole(db: Connection, clock: Clock) -> None:
    shoe = item(db, stock=3, max_per_order=4, hold_seconds=10)
    ann = ask(db, shoe, "ann", 4, 2)
    call(db, "note_provider", True)
    clock.advance(5)
    call(db, "note_provider", True)
    clock.advance(5)
    settle(db)
    ann = status(db, ann.order_id)
    assert (ann.status, ann.units) == ("waiting", None)
    assert tickets(db, ann) == [*((n, "waiting") for n in (1, 2, 3)), (4, "unserved")]
    call(db, "note_provider", False)
    settle(db)
    ann = status(db, ann.order_id)
    assert (ann.status, ann.units, ann.amount) == ("reserved", 3, 3000)
    assert pay(db, ann).outcome == "paid"


def test_a_group_settles_and_is_paid_with_all_its_units(db: Connection, clock: Clock) -> None:
    shoe = item(db, stock=3, max_per_order=3, hold_seconds=10)
    ann = ask(db, shoe, "ann", 3)
    (job,) = rows(db, "select * from flashsale.take_payment_jobs(10, 30)")
    call(db, "payment_opened", job.job_id, job.tries, job.payment_id, "s1", "http://pay")
    clock.advance(10)
    sweep(db)
    assert {state for _, state in tickets(db, ann)} == {"settling"}
    paid = call(db, "pay", job.payment_id, "s1", 3000, "EUR", clock.at(-1))
    assert (paid.outcome, paid.units) == ("paid", 3)
    assert {state for _, state in tickets(db, ann)} == {"paid"}


def test_a_group_that_settled_in_vain_expires_with_all_its_units(
    db: Connection, clock: Clock
) -> None:
    shoe = item(db, stock=3, max_per_order=3, hold_seconds=10)
    ann = ask(db, shoe, "ann", 3)
    (job,) = rows(db, "select * from flashsale.take_payment_jobs(10, 30)")
    call(db, "payment_opened", job.job_id, job.tries, job.payment_id, "s1", "http://pay")
    clock.advance(10)
    sweep(db)
    call(db, "payment_voided", 0, 0, job.payment_id)
    assert {state for _, state in tickets(db, ann)} == {"expired"}
    settle(db)
    assert item_status(db, shoe).available == 3


@pytest.mark.parametrize(("stock", "outcome"), [(6, "paid"), (5, "refund_due")])
def test_late_money_for_a_group_buys_as_many_units_or_none(
    db: Connection, clock: Clock, stock: int, outcome: str
) -> None:
    shoe = item(db, stock=stock, max_per_order=3, late_payment="keep_if_free", hold_seconds=10)
    ann = ask(db, shoe, "ann", 3)
    clock.advance(10)
    late = pay(db, ann)
    assert late.outcome == outcome
    assert item_status(db, shoe).issued == (6 if outcome == "paid" else 3)
    if outcome == "paid":
        assert (late.quantity, late.units, late.ticket) == (3, 3, 4)
        assert tickets(db, late) == [(n, "paid") for n in (4, 5, 6)]
        settle(db)
        sold = item_status(db, shoe)
        assert (sold.paid, sold.available) == (3, 3)


def test_money_of_one_unit_does_not_buy_three(db: Connection) -> None:
    shoe = item(db, stock=3, max_per_order=3)
    ann = ask(db, shoe, "ann", 3)
    assert call(db, "pay", ann.payment_id, "s1", 1000, "EUR").outcome == "refund_due"
    again = call(db, "request_payment", ann.order_id)
    assert again.amount == 3000
    assert pay(db, again).outcome == "paid"


def test_a_part_is_no_order_for_anybody(db: Connection) -> None:
    shoe = item(db, stock=3, max_per_order=3)
    ann = ask(db, shoe, "ann", 3)
    for verb in ("cancel", "order_status", "request_payment", "explain_order"):
        with pytest.raises(psycopg.Error) as error:
            rows(db, f"select * from flashsale.{verb}(%s)", ann.order_id + 1)
        assert error.value.sqlstate == "RV102"
    assert call(db, "pay", ann.order_id + 1, "s1", 1000, "EUR").outcome == "stray"
    assert [o.order_id for o in rows(db, "select * from flashsale.orders_of('ann')")] == [
        ann.order_id
    ]
    assert tickets(db, ann) == [(n, "reserved") for n in (1, 2, 3)]


def test_a_group_that_rolls_back_leaves_holes_that_are_filled(db: Connection) -> None:
    shoe = item(db, stock=3, max_per_order=3)
    with db.transaction(force_rollback=True):
        ask(db, shoe, "ann", 3)
    bob = ask(db, shoe, "bob", 2)
    assert (bob.outcome, bob.ticket) == ("waiting", 4)
    settle(db)
    assert status(db, bob.order_id).status == "reserved"


# Limits


def test_what_a_customer_has_paid_counts_towards_their_limit(db: Connection) -> None:
    shoe = item(db, stock=20, max_per_order=2, max_per_customer=5)
    bought = []
    for quantity in (2, 2, 1):
        order = ask(db, shoe, "ann", quantity)
        assert (order.outcome, order.units) == ("reserved", quantity)
        assert ask(db, shoe, "ann", quantity).order_id == order.order_id  # the open one
        pay(db, order)
        bought.append(order.order_id)
        if quantity == 2 and len(bought) == 2:
            assert ask(db, shoe, "ann", 2).outcome == "too_many"
    full = ask(db, shoe, "ann")
    assert (full.outcome, full.order_id, full.status) == ("existing", bought[-1], "paid")
    assert item_status(db, shoe).issued == 5
    call(db, "refund_order", bought[0], "too big")
    again = ask(db, shoe, "ann", 2)
    assert (again.outcome, again.units) == ("reserved", 2)


def test_too_many_takes_no_ticket_and_writes_nothing(db: Connection) -> None:
    shoe = item(db, stock=20, max_per_order=2, max_per_customer=3)
    refused = ask(db, shoe, "ann", 3, key="k")
    assert (refused.outcome, refused.order_id) == ("too_many", None)
    assert item_status(db, shoe).issued == 0
    assert value(db, "select count(*) from flashsale_data.order_keys") == 0
    assert ask(db, shoe, "ann", 2, key="k").outcome == "reserved"


def test_variants_share_a_limit_and_one_open_order(db: Connection) -> None:
    small, large = (
        item(db, sku, stock=9, max_per_order=2, max_per_customer=3, product="shoe")
        for sku in ("s", "l")
    )
    other = item(db, "hat", stock=9)
    first = ask(db, small, "ann", 2)
    refused = ask(db, large, "ann")
    assert (refused.outcome, refused.order_id, refused.status) == (
        "has_other_order",
        first.order_id,
        None,
    )
    assert ask(db, other, "ann").outcome == "reserved"
    pay(db, first)
    assert ask(db, large, "ann", 2).outcome == "too_many"
    second = ask(db, large, "ann")
    assert second.outcome == "reserved"
    pay(db, second)
    for variant in (small, large):
        full = ask(db, variant, "ann", key=f"k{variant}")
        assert (full.outcome, full.order_id) == ("existing", second.order_id)
    assert (item_status(db, large).product, item_status(db, other).product) == ("shoe", None)


def test_with_the_defaults_a_paid_order_of_a_variant_is_the_answer(db: Connection) -> None:
    small, large = (item(db, sku, stock=9, product="shoe") for sku in ("s", "l"))
    order = ask(db, small, "ann")
    pay(db, order)
    full = ask(db, large, "ann")
    assert (full.outcome, full.order_id, full.item_id) == ("existing", order.order_id, large)


def test_a_limit_that_is_raised_lets_a_customer_buy_again(db: Connection) -> None:
    shoe = item(db, stock=9)
    order = ask(db, shoe, "ann")
    pay(db, order)
    assert ask(db, shoe, "ann").order_id == order.order_id
    call(db, "change_item", shoe, Jsonb({"max_per_customer": 2}))
    again = ask(db, shoe, "ann")
    assert again.outcome == "reserved"
    pay(db, again)
    assert ask(db, shoe, "ann").order_id == again.order_id


def test_a_limit_that_is_lowered_lets_nobody_go_over_it(db: Connection) -> None:
    shoe = item(db, stock=9, max_per_order=2, max_per_customer=4)
    order = ask(db, shoe, "ann", 2)
    pay(db, order)
    call(db, "change_item", shoe, Jsonb({"max_per_customer": 2}))
    assert ask(db, shoe, "ann").order_id == order.order_id
    call(db, "change_item", shoe, Jsonb({"max_per_order": 1, "max_per_customer": None}))
    assert ask(db, shoe, "ann").order_id == order.order_id
    call(db, "change_item", shoe, Jsonb({"max_per_customer": 3}))
    assert ask(db, shoe, "ann").outcome == "reserved"


def test_terms_that_are_not_possible_are_refused(db: Connection) -> None:
    for terms in (
        {"max_per_order": 0},
        {"max_per_order": 101},
        {"max_per_order": 3, "max_per_customer": 2},
        {"max_per_customer": 10_001},
        {"product": ""},
        {"product": "x" * 65},
    ):
        with pytest.raises(psycopg.Error) as error:
            item(db, **terms)
        assert error.value.sqlstate == "RV302", terms
    shoe = item(db, max_per_order=3)
    for change in ({"max_per_order": 0}, {"max_per_customer": 2}, {"product": "shoe"}):
        with pytest.raises(psycopg.Error) as error:
            call(db, "change_item", shoe, Jsonb(change))
        assert error.value.sqlstate == "RV302", change


@pytest.mark.parametrize(("quantity", "minimum"), [(0, None), (-1, None), (2, 3), (2, 0), (1, 2)])
def test_a_quantity_that_is_not_possible_is_refused(
    db: Connection, quantity: int, minimum: int | None
) -> None:
    shoe = item(db, stock=9, max_per_order=4)
    with pytest.raises(psycopg.Error) as error:
        ask(db, shoe, "ann", quantity, minimum)
    assert error.value.sqlstate == "RV301"
    assert "min_quantity" in (error.value.diag.message_hint or "")


# Keys


def test_a_key_is_bound_to_what_it_asked_for(db: Connection) -> None:
    shoe = item(db, stock=9, max_per_order=4)
    order = ask(db, shoe, "ann", 3, 2, key="k")
    for quantity, minimum, wait in ((3, 3, True), (3, None, True), (2, 2, True), (3, 2, False)):
        reused = ask(db, shoe, "ann", quantity, minimum, key="k", wait=wait)
        assert (reused.outcome, reused.order_id) == ("key_reused", None)
    again = ask(db, shoe, "ann", 3, 2, key="k")
    assert (again.outcome, again.order_id) == ("existing", order.order_id)
    one_unit = ask(db, shoe, "bob", key="k")
    assert ask(db, shoe, "bob", 1, 1, key="k").order_id == one_unit.order_id
    assert ask(db, shoe, "bob", 2, key="k").outcome == "key_reused"


def test_a_key_from_before_the_migration_takes_any_wait(db: Connection) -> None:
    shoe = item(db, stock=9)
    order = ask(db, shoe, "ann", key="k")
    db.execute("update flashsale_data.order_keys set wait = null")
    for wait in (True, False):
        assert ask(db, shoe, "ann", key="k", wait=wait).order_id == order.order_id


# Batches


def test_a_batch_takes_tickets_in_the_order_of_its_requests(db: Connection) -> None:
    shoe = item(db, stock=6, max_per_order=4)
    batch = ask_all(db, [(shoe, "zoe", 2), (shoe, "ann", 1), (shoe, "max", 4), (shoe, "bob", 5)])
    assert [(o.outcome, o.ticket, o.units) for o in batch] == [
        ("reserved", 1, 2),
        ("reserved", 3, 1),
        ("waiting", 4, None),
        ("too_many", None, None),
    ]
    for order in batch[:3]:
        assert order._replace(outcome="found") == status(db, order.order_id)
    assert item_status(db, shoe).issued == 7


def test_two_requests_of_a_customer_in_a_batch_get_one_order(db: Connection) -> None:
    small, large = (item(db, sku, stock=9, max_per_order=3, product="x") for sku in ("s", "l"))
    batch = ask_all(
        db,
        [(small, "ann", 2), (small, "ann", 3), (large, "ann", 1), (large, "bob", 3)],
        ["k", "k", None, None],
    )
    assert [o.outcome for o in batch] == ["reserved", "key_reused", "has_other_order", "reserved"]
    assert batch[2].order_id == batch[0].order_id
    assert [item_status(db, i).issued for i in (small, large)] == [2, 3]


def test_a_batch_with_customers_who_buy_again_keeps_its_order(db: Connection) -> None:
    shoe = item(db, stock=5, max_per_order=2, max_per_customer=4)
    pay(db, ask(db, shoe, "ann", 2))
    batch = ask_all(db, [(shoe, "bob", 1), (shoe, "ann", 2), (shoe, "cid", 1)])
    assert [(o.outcome, o.ticket) for o in batch] == [
        ("reserved", 3),
        ("reserved", 4),
        ("waiting", 6),
    ]


def test_the_story_of_a_group_says_how_many_units(db: Connection, clock: Clock) -> None:
    shoe = item(db, stock=2, max_per_order=3, hold_seconds=10)
    pay(db, ask(db, shoe, "bob"))
    ann = ask(db, shoe, "ann", 3, 2)
    told = [row.what for row in rows(db, "select * from flashsale.explain_order(%s)", ann.order_id)]
    assert told[0] == "Customer ann asked for 3 units of 'Shoe', got ticket 2 and joined the line."
    assert told[-1].startswith("Now: waiting for at least 2 units; 1 of them set aside until ")
    clock.advance(10)
    settle(db)
    told = [row.what for row in rows(db, "select * from flashsale.explain_order(%s)", ann.order_id)]
    assert told[-1] == "Too few units came in time. Those that were set aside went to the line."


# Races


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
def test_a_request_that_did_not_see_what_was_bought_since_does_not_go_over_the_limit(
    db: Connection, database_url: str, isolation: str
) -> None:
    shoe = item(db, stock=99, max_per_order=2, max_per_customer=4)
    for bought_before in (False, True):
        name = f"ann {bought_before}"
        if bought_before:
            pay(db, ask(db, shoe, name, 2))
        with connect(database_url, autocommit=False) as old:
            old.execute(f"set transaction isolation level {isolation}")
            value(old, "select count(*) from flashsale.item_status")  # the snapshot is taken
            for _ in range(1 if bought_before else 2):
                pay(db, ask(db, shoe, name, 2))
            try:
                assert ask(old, shoe, name, 2).outcome == "existing"
            except psycopg.errors.SerializationFailure:
                assert isolation != "read committed"
            old.rollback()
        assert (
            value(
                db,
                "select sum(units) from flashsale.order_status where customer_id = %s",
                name,
            )
            == 4
        )


def test_two_requests_for_variants_at_once_get_one_order(db: Connection, database_url: str) -> None:
    small, large = (item(db, sku, stock=9, max_per_order=2, product="x") for sku in ("s", "l"))
    with connect(database_url, autocommit=False) as first, connect(database_url) as second:
        order = ask(first, small, "ann", 2)
        other = Call(partial(ask, second, large, "ann", 2))
        eventually(partial(blocked, db, second))
        first.commit()
        refused = other.result()
    assert (refused.outcome, refused.order_id) == ("has_other_order", order.order_id)
    settle(db)
    assert item_status(db, large).available == 9


def test_two_requests_after_a_payment_at_once_get_one_order(
    db: Connection, database_url: str
) -> None:
    shoe = item(db, stock=9, max_per_order=2, max_per_customer=4)
    pay(db, ask(db, shoe, "ann", 2))
    with connect(database_url, autocommit=False) as first, connect(database_url) as second:
        order = ask(first, shoe, "ann", 2)
        other = Call(partial(ask, second, shoe, "ann", 2))
        eventually(partial(blocked, db, second))
        first.commit()
        again = other.result()
    assert (again.outcome, again.order_id) == ("existing", order.order_id)


def test_a_group_that_is_being_cancelled_is_skipped_by_a_sweep(
    db: Connection, database_url: str
) -> None:
    shoe = item(db, stock=2, max_per_order=2)
    ann = ask(db, shoe, "ann", 2)
    bob, cid = ask(db, shoe, "bob", 2), ask(db, shoe, "cid", 2)
    call(db, "cancel", ann.order_id)
    with connect(database_url, autocommit=False) as leaver:
        call(leaver, "cancel", bob.order_id)
        assert Call(lambda: sweep(db)).result().promoted == 0
        leaver.commit()
    settle(db)
    assert status(db, cid.order_id).status == "reserved"
    assert reserve(db, shoe, "dan").outcome == "waiting"
