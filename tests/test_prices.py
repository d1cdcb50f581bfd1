"""Prices change until somebody asks. No order is asked for another amount than it was told."""

from __future__ import annotations

import psycopg
import pytest

from money_support import take
from support import (
    Connection,
    call,
    connect,
    item,
    item_status,
    one,
    reserve,
    rows,
    settle,
    status,
    sweep,
    value,
)

DEARER = '{"price": 2000}'


def refused(conn: Connection, item_id: int, changes: str = DEARER) -> None:
    with pytest.raises(psycopg.Error) as error:
        call(conn, "change_item", item_id, changes)
    assert (error.value.sqlstate, error.value.diag.constraint_name) == ("RV209", "has_orders")


def test_a_price_and_a_currency_are_corrected_before_the_first_order(db: Connection) -> None:
    shoe = item(db, stock=3)
    for price, currency in ((2000, "EUR"), (2000, "JPY"), (5, "USD")):
        changed = call(db, "change_item", shoe, f'{{"price": {price}, "currency": "{currency}"}}')
        assert (changed.price, changed.currency) == (price, currency)
        assert (changed.stock, changed.available, changed.waiting) == (3, 3, 0)
    orders = [reserve(db, shoe, customer) for customer in ("ann", "bob", "cem", "dan")]
    assert [o.status for o in orders] == ["reserved"] * 3 + ["waiting"]
    assert {(o.amount, o.currency) for o in orders[:3]} == {(5, "USD")}
    assert {(j.amount, j.currency) for j in take(db)} == {(5, "USD")}
    settle(db)
    assert item_status(db, shoe).available == 0


def test_a_price_stays_after_the_first_order(db: Connection) -> None:
    shoe = item(db)
    order = reserve(db, shoe, "ann")
    for changes in (DEARER, '{"currency": "USD"}'):
        refused(db, shoe, changes)
    assert call(db, "change_item", shoe, '{"price": 1000, "name": "Boot"}').name == "Boot"
    call(db, "cancel", order.order_id, "ann")
    settle(db)
    refused(db, shoe)
    assert item_status(db, shoe).price == 1000
    assert [r.action for r in rows(db, "select action from flashsale.history order by 1")] == [
        "change_item",
        "create_item",
    ]


def test_a_price_stays_after_somebody_waits(db: Connection) -> None:
    shoe = item(db, stock=0)
    reserve(db, shoe, "ann")
    refused(db, shoe)


def test_a_first_order_that_has_not_committed_comes_first(
    db: Connection, database_url: str
) -> None:
    shoe = item(db, stock=2)
    with connect(database_url) as customer:
        customer.execute("begin")
        order = reserve(customer, shoe, "ann")
        refused(db, shoe)  # at once: it waits for nobody
        customer.execute("commit")
    assert order.amount == status(db, order.order_id).amount == 1000
    assert [job.amount for job in take(db)] == [1000]


@pytest.mark.parametrize("wait", [True, False])
def test_a_request_that_has_read_the_old_price_is_not_served_at_it(
    db: Connection, database_url: str, wait: bool
) -> None:
    shoe = item(db, stock=2)
    with connect(database_url) as customer:
        customer.execute("begin isolation level repeatable read")
        assert value(customer, "select price from flashsale.item_status") == 1000
        call(db, "change_item", shoe, DEARER)
        order = call(customer, "reserve", shoe, "ann", None, wait)
        customer.execute("commit")
    if not wait:
        assert (order.outcome, order.amount) == ("sold_out", None)
        return
    assert (order.outcome, order.amount, order.position) == ("waiting", None, 1)
    sweep(db)
    served = status(db, order.order_id)
    assert (served.status, served.amount) == ("reserved", 2000)
    assert [job.amount for job in take(db)] == [2000]


def test_a_batch_that_has_read_the_old_price_is_not_served_at_it(
    db: Connection, database_url: str
) -> None:
    shoe = item(db, stock=2)
    with connect(database_url) as customer:
        customer.execute("begin isolation level repeatable read")
        assert value(customer, "select price from flashsale.item_status") == 1000
        call(db, "change_item", shoe, DEARER)
        orders = rows(
            customer,
            "select * from flashsale.reserve_many(array[%s, %s]::int[], array['ann', 'bob'])",
            shoe,
            shoe,
        )
        customer.execute("commit")
    assert [(o.outcome, o.amount) for o in orders] == [("waiting", None)] * 2
    sweep(db)
    assert {job.amount for job in take(db)} == {2000}


def test_a_change_that_rolls_back_loses_no_unit(db: Connection, database_url: str) -> None:
    shoe = item(db, stock=2)
    with connect(database_url) as staff:
        staff.execute("begin")
        call(staff, "change_item", shoe, DEARER)
        waiting = reserve(db, shoe, "ann")
        staff.execute("rollback")
    assert waiting.status == "waiting"
    settle(db)
    served = status(db, waiting.order_id)
    assert (served.status, served.amount) == ("reserved", 1000)
    assert item_status(db, shoe).available == 1


def test_a_first_request_that_rolled_back_does_not_fix_the_price(
    db: Connection, database_url: str
) -> None:
    shoe = item(db, stock=2)
    with connect(database_url) as customer:
        customer.execute("begin")
        reserve(customer, shoe, "ann")
        customer.execute("rollback")
    refused(db, shoe)  # nobody knows yet that its ticket belongs to nobody
    settle(db)
    assert call(db, "change_item", shoe, DEARER).price == 2000
    settle(db)
    assert one(db, "select * from flashsale.item_status").available == 2


def test_units_that_were_withdrawn_do_not_fix_the_price(db: Connection) -> None:
    shoe = item(db, stock=5)
    call(db, "withdraw", shoe, 2)
    changed = call(db, "change_item", shoe, '{"price": 2000, "add_stock": 1}')
    assert (changed.price, changed.stock, changed.available) == (2000, 4, 4)
    settle(db)
    assert reserve(db, shoe, "ann").amount == 2000


@pytest.mark.parametrize(
    "changes",
    [
        '{"price": null}',
        '{"price": 0}',
        '{"price": 1.5}',
        '{"price": "9"}',
        '{"price": 1000000000001}',
        '{"currency": "eur"}',
        '{"currency": null}',
        '{"name": ""}',
        '{"name": null}',
    ],
)
def test_impossible_prices_and_names_are_refused(db: Connection, changes: str) -> None:
    shoe = item(db)
    before = item_status(db, shoe)
    with pytest.raises(psycopg.Error) as error:
        call(db, "change_item", shoe, changes)
    assert error.value.sqlstate == "RV302"
    after = item_status(db, shoe)
    assert (after.price, after.currency, after.name) == (before.price, "EUR", "Shoe")
