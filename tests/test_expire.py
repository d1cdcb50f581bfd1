"""A hold ends at its deadline, and the unit goes to the next in line."""

from __future__ import annotations

from flashsale.testing.clock import Clock
from support import (
    Call,
    Connection,
    call,
    connect,
    item,
    many,
    pay,
    reserve,
    rows,
    status,
    statuses,
    sweep,
    value,
)


def test_a_hold_expires_at_its_deadline_not_before(db: Connection, clock: Clock) -> None:
    order = reserve(db, item(db, hold_seconds=10), "ann")
    clock.set(order.expires_at, -0.001)
    assert call(db, "expire")[0] == 0
    assert status(db, order.order_id).status == "reserved"
    clock.set(order.expires_at)
    assert status(db, order.order_id).status == "expired"  # before any sweep
    assert call(db, "expire")[0] == 1
    assert status(db, order.order_id).ended_at == order.expires_at


def test_the_next_in_line_gets_the_unit_a_full_hold_and_a_payment(
    db: Connection, clock: Clock
) -> None:
    shoe = item(db, hold_seconds=10)
    reserve(db, shoe, "ann")
    bob = reserve(db, shoe, "bob")
    clock.advance(12)
    swept = sweep(db)
    assert (swept.expired, swept.recycled, swept.promoted) == (1, 1, 1)
    bob = status(db, bob.order_id)
    assert (bob.status, bob.payment_status) == ("reserved", "requested")
    assert bob.reserved_at == clock.at(0)
    assert (bob.expires_at - bob.reserved_at).total_seconds() == 10


def test_a_customer_whose_hold_expired_goes_to_the_end_of_the_line(
    db: Connection, clock: Clock
) -> None:
    shoe = item(db, hold_seconds=10)
    many(db, shoe, ["ann", "bob", "cid"])
    clock.advance(10)
    assert reserve(db, shoe, "ann").ticket == 4
    sweep(db)
    assert statuses(db, shoe) == {"ann": "waiting", "bob": "reserved", "cid": "waiting"}


def test_paid_orders_never_expire(db: Connection, clock: Clock) -> None:
    order = reserve(db, item(db, hold_seconds=10), "ann")
    pay(db, order)
    clock.advance(1000)
    assert sweep(db).expired == 0
    assert status(db, order.order_id).status == "paid"


def test_expiry_does_not_wait_for_an_order_that_is_being_paid(
    db: Connection, database_url: str, clock: Clock
) -> None:
    shoe = item(db, stock=2, hold_seconds=10)
    ann, _bob = reserve(db, shoe, "ann"), reserve(db, shoe, "bob")
    with connect(database_url, autocommit=False) as payer:
        payer.execute(
            "select from flashsale_data.orders where order_id = %s for update", [ann.order_id]
        )
        clock.advance(10)
        assert Call(lambda: call(db, "expire")).result()[0] == 1
    assert call(db, "expire")[0] == 1


def test_everything_due_is_done_in_steps_of_the_limit(db: Connection, clock: Clock) -> None:
    shoe = item(db, stock=24, hold_seconds=10)
    many(db, shoe, [f"c{n}" for n in range(60)])
    clock.advance(10)
    swept = []
    for _ in range(3):
        call(db, "publish_events")  # else there is more for the feed
        swept.append(call(db, "sweep", "test", 10))
    assert [(s.expired, s.more) for s in swept] == [(10, True), (10, True), (4, False)]
    assert value(db, "select count(*) from flashsale.open_reservation") == 24


def test_a_call_ends_no_more_holds_than_its_limit_the_oldest_first(
    db: Connection, clock: Clock
) -> None:
    shoe = item(db, stock=3, hold_seconds=10)
    for customer in ("ann", "bob", "cid"):
        reserve(db, shoe, customer)
        clock.advance(1)
    clock.advance(10)
    assert call(db, "expire", 2)[0] == 2
    open_holds = "status = 'reserved' and ended_at is null"
    assert value(db, f"select customer_id from flashsale_data.orders where {open_holds}") == "cid"


def test_the_customer_gets_an_e_mail(db: Connection, clock: Clock) -> None:
    shoe = item(db, hold_seconds=10)
    many(db, shoe, ["ann", "bob"])
    clock.advance(10)
    sweep(db)
    mails = rows(db, "select message from flashsale.take_notifications(10, 30)")
    assert [(m.message["kind"], m.message["customer_id"]) for m in mails] == [("expired", "ann")]
