"""An idempotency key: a call has its effect once, however often and however fast it is repeated."""

from __future__ import annotations

from functools import partial
from typing import Any

import psycopg
import pytest

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
    one,
    pay,
    reserve,
    rows,
    sessions,
    settle,
    status,
    value,
)


def keyed(conn: Connection, verb: str, *args: Any, key: str, **named: Any) -> Any:
    """Calls a verb with a key; named: arguments without their p_."""
    named["idempotency_key"] = key
    marks = ["%s"] * len(args) + [f"p_{name} => %s" for name in named]
    query = f"select * from flashsale.{verb}({', '.join(marks)})"
    return one(conn, query, *args, *named.values())


def history(conn: Connection) -> list[str]:
    return [row.action for row in rows(conn, "select action from flashsale.history order by 1")]


@pytest.mark.parametrize(
    ("verb", "args", "stock"),
    [
        ("restock", (5,), 15),
        ("withdraw", (5,), 5),
        ("change_item", ('{"add_stock": 5}',), 15),
        ("change_item", ('{"withdraw_stock": 5}',), 5),
    ],
)
def test_the_same_call_again_has_one_effect(
    db: Connection, verb: str, args: tuple[Any, ...], stock: int
) -> None:
    shoe = item(db, stock=10)
    for _ in range(3):
        assert keyed(db, verb, shoe, *args, key="k1").stock == stock
    assert history(db) == [*sorted(["create_item", verb])]
    keyed(db, verb, shoe, *args, key="k2")
    assert item_status(db, shoe).stock == 2 * stock - 10


def test_a_repeat_is_answered_with_the_state_of_now(db: Connection) -> None:
    shoe = item(db, stock=10)
    keyed(db, "restock", shoe, 5, key="k1")
    call(db, "restock", shoe, 100)
    assert keyed(db, "restock", shoe, 5, key="k1").stock == 115


NEW = ("shoe", "Shoe", 1000, "EUR", 10, 60)


def test_an_item_is_created_once(db: Connection) -> None:
    first = keyed(db, "create_item", *NEW, key="k1")
    assert keyed(db, "create_item", *NEW, key="k1").item_id == first.item_id
    with pytest.raises(psycopg.Error) as error:
        keyed(db, "create_item", *NEW, key="k2")
    assert (error.value.sqlstate, error.value.diag.constraint_name) == ("RV201", "sku_taken")
    assert error.value.diag.message_detail == f"sku 'shoe', item_id {first.item_id}"


@pytest.mark.parametrize("form", ["::timestamptz", ""], ids=["times", "literals"])
def test_the_time_zone_of_the_session_does_not_make_another_request(
    db: Connection, form: str
) -> None:
    """Two tools, or one pool after a reconnect, may have two time zones."""

    def create(opens_at: str) -> Any:
        return one(
            db,
            f"select * from flashsale.create_item('shoe', 'Shoe', 1000, 'EUR', 10, 60, "
            f"p_opens_at => '{opens_at}'{form}, p_closes_at => '2036-01-01T00:00:00Z'{form}, "
            "p_idempotency_key => 'k1')",
        )

    db.execute("set timezone = 'UTC'")
    first = create("2035-11-27T20:00:00Z")
    for zone in ("Asia/Tokyo", "America/St_Johns"):
        db.execute(f"set timezone = '{zone}'")
        assert create("2035-11-27T20:00:00Z").item_id == first.item_id, zone
        assert create("2035-11-27T21:00:00+01:00").item_id == first.item_id, zone
        with pytest.raises(psycopg.Error) as error:
            create("2035-11-27T20:00:00+01:00")
        assert error.value.diag.constraint_name == "key_reused", "another time is another request"
    assert history(db) == ["create_item"]


def test_deadlines_are_moved_once_and_the_number_stays(db: Connection, clock: Clock) -> None:
    shoe = item(db, stock=2)
    order = reserve(db, shoe, "ann")
    assert keyed(db, "extend_holds", shoe, 30, "outage", key="k1").extend_holds == 1
    reserve(db, shoe, "bob")
    assert keyed(db, "extend_holds", shoe, 30, "outage", key="k1").extend_holds == 1
    assert status(db, order.order_id).expires_at == clock.at(90)
    assert keyed(db, "extend_holds", shoe, 30, "outage", key="k2").extend_holds == 2


def test_a_payment_is_asked_for_once(db: Connection) -> None:
    order = reserve(db, item(db), "ann")
    call(db, "end_payment", order.order_id, "s1", "failed", False)
    first = keyed(db, "request_payment", order.order_id, "ann", key="k1")
    assert first.outcome == "requested"
    call(db, "end_payment", first.payment_id, "s2", "failed", False)
    again = keyed(db, "request_payment", order.order_id, "ann", key="k1")
    assert (again.outcome, again.payment_id) == ("repeated", first.payment_id)
    assert keyed(db, "request_payment", order.order_id, "ann", key="k2").outcome == "requested"


def test_repeats_of_verbs_of_orders_are_answered_with_the_order(db: Connection) -> None:
    shoe = item(db, stock=3)
    ann, bob, cem = (reserve(db, shoe, customer) for customer in ("ann", "bob", "cem"))
    for outcome in ("cancelled", "repeated"):
        answered = keyed(db, "cancel", ann.order_id, "ann", key="k1")
        assert (answered.outcome, answered.status) == (outcome, "cancelled")
    for outcome in ("paid", "repeated"):
        answered = keyed(db, "pay_offline", bob.order_id, "till-1", key="k1")
        assert (answered.outcome, answered.status) == (outcome, "paid")
    pay(db, cem)
    for outcome in ("refunded", "repeated"):
        answered = keyed(db, "refund_order", cem.order_id, "torn", key="k2")
        assert (answered.outcome, answered.status) == (outcome, "refunded")
    settle(db)


@pytest.mark.parametrize(
    ("verb", "args"),
    [
        ("restock", (6,)),
        ("withdraw", (5,)),
        ("change_item", ('{"add_stock": 5}',)),
        ("extend_holds", (5, "outage")),
    ],
)
def test_a_key_belongs_to_one_request(db: Connection, verb: str, args: tuple[Any, ...]) -> None:
    shoe = item(db, stock=10)
    keyed(db, "restock", shoe, 5, key="k1")
    with pytest.raises(psycopg.Error) as error:
        keyed(db, verb, shoe, *args, key="k1")
    assert (error.value.sqlstate, error.value.diag.constraint_name) == ("RV304", "key_reused")
    other = item(db, "boot", stock=10)
    with pytest.raises(psycopg.Error, match="another request"):
        keyed(db, "restock", other, 5, key="k1")
    assert (item_status(db, shoe).stock, item_status(db, other).stock) == (15, 10)


def test_customers_do_not_share_keys(db: Connection) -> None:
    shoe = item(db, stock=2)
    ann, bob = reserve(db, shoe, "ann"), reserve(db, shoe, "bob")
    keyed(db, "restock", shoe, 5, key="k1")
    for order in (ann, bob):
        assert keyed(db, "cancel", order.order_id, order.customer_id, key="k1").outcome == (
            "cancelled"
        )


@pytest.mark.parametrize("key", ["", "k" * 256])
def test_a_key_has_1_to_255_characters(db: Connection, key: str) -> None:
    shoe = item(db, stock=10)
    with pytest.raises(psycopg.Error) as error:
        keyed(db, "restock", shoe, 5, key=key)
    assert error.value.sqlstate == "RV302"
    keyed(db, "restock", shoe, 5, key="k" * 255)


def test_a_refused_call_leaves_its_key_free(db: Connection) -> None:
    shoe = item(db, stock=1)
    with pytest.raises(psycopg.Error, match="can still be withdrawn"):
        keyed(db, "withdraw", shoe, 5, key="k1")
    call(db, "restock", shoe, 4)
    assert keyed(db, "withdraw", shoe, 5, key="k1").stock == 0


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_another_caller_waits_for_the_first_one(
    db: Connection, database_url: str, end: str
) -> None:
    shoe = item(db, stock=10)
    with sessions(database_url, 3) as (first, second, third), connect(database_url) as watcher:
        first.execute("begin")
        keyed(first, "restock", shoe, 5, key="k1")
        waiting = []
        for session in (second, third):
            waiting.append(Call(partial(keyed, session, "restock", shoe, 5, key="k1")))
            eventually(partial(blocked, watcher, session))
        first.execute(end)
        assert [c.result().stock for c in waiting] == [15, 15]
    assert item_status(db, shoe).stock == 15
    assert history(db) == ["create_item", "restock"]


def test_in_repeatable_read_a_repeat_fails_rather_than_adds(
    db: Connection, database_url: str
) -> None:
    shoe = item(db, stock=10)
    with connect(database_url) as conn:
        conn.execute("begin isolation level repeatable read")
        value(conn, "select stock from flashsale.item_status")
        keyed(db, "restock", shoe, 5, key="k1")
        with pytest.raises(psycopg.errors.SerializationFailure):
            keyed(conn, "restock", shoe, 5, key="k1")
        conn.execute("rollback")
    assert item_status(db, shoe).stock == 15
