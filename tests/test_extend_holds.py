"""Staff move the running deadlines of an item later, never earlier."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from flashsale.testing.clock import Clock
from money_support import event, open_sessions
from support import (
    Call,
    Connection,
    blocked,
    call,
    connect,
    eventually,
    item,
    many,
    one,
    pay,
    reserve,
    status,
    statuses,
    sweep,
    value,
)


def test_running_deadlines_of_the_item_move_and_no_others(db: Connection, clock: Clock) -> None:
    shoe, hat = item(db, stock=4), item(db, "hat")
    over = reserve(db, shoe, "ann")
    clock.advance(30)
    running, paid = reserve(db, shoe, "bob"), reserve(db, shoe, "cid")
    pay(db, paid)
    other = reserve(db, hat, "bob")
    clock.advance(30)
    assert call(db, "extend_holds", shoe, 100, "our site was down", "eve")[0] == 1
    assert status(db, over.order_id).status == "expired"
    assert status(db, paid.order_id).expires_at == paid.expires_at
    assert status(db, other.order_id).expires_at == other.expires_at
    moved = status(db, running.order_id).expires_at
    assert (moved - running.expires_at).total_seconds() == 100
    clock.advance(129)
    sweep(db)
    assert statuses(db, shoe) == {"ann": "expired", "bob": "reserved", "cid": "paid"}
    noted = one(db, "select * from flashsale.history")
    assert (noted.staff, noted.action, noted.item_id) == ("eve", "extend_holds", shoe)
    assert (noted.after, noted.reason) == ({"seconds": 100, "extended": 1}, "our site was down")


def test_money_before_the_new_deadline_buys(db: Connection, clock: Clock) -> None:
    order = reserve(db, item(db), "ann")
    open_sessions(db)
    call(db, "extend_holds", order.item_id, 60, "x")
    clock.advance(119)
    assert event(db, "succeeded", order, at=clock.at()) == "paid"


def test_what_settles_is_over(db: Connection, clock: Clock) -> None:
    order = reserve(db, item(db), "ann")
    open_sessions(db)
    clock.advance(60)
    sweep(db)
    assert call(db, "extend_holds", order.item_id, 60, "x")[0] == 0
    assert status(db, order.order_id).status == "settling"


def test_a_hold_that_came_due_while_it_waited_is_not_revived(
    db: Connection, database_url: str, clock: Clock
) -> None:
    shoe = item(db, stock=2)
    ann, _bob = many(db, shoe, ["ann", "bob"])
    with connect(database_url, autocommit=False) as payer, connect(database_url) as staff:
        payer.execute(
            "select from flashsale_data.orders where order_id = %s for update", [ann.order_id]
        )
        extending = Call(lambda: call(staff, "extend_holds", shoe, 60, "x"))
        eventually(lambda: blocked(db, staff))
        clock.advance(60)
        payer.rollback()
        assert extending.result()[0] == 0
    assert value(db, "select flashsale.expire()") == 2


@pytest.mark.parametrize(
    ("args", "sqlstate"),
    [
        ((0, "x", None), "RV302"),
        ((-5, "x", None), "RV302"),
        ((604801, "x", None), "RV302"),
        ((None, "x", None), "RV302"),
        ((5, "", None), "RV302"),
        ((5, None, None), "RV302"),
        ((5, "x", ""), "RV302"),
    ],
)
def test_nonsense_is_refused(db: Connection, args: tuple[Any, ...], sqlstate: str) -> None:
    order = reserve(db, item(db), "ann")
    with pytest.raises(psycopg.Error) as error:
        call(db, "extend_holds", order.item_id, *args)
    assert error.value.sqlstate == sqlstate
    with pytest.raises(psycopg.Error) as error:
        call(db, "extend_holds", 99, 5, "x")
    assert error.value.sqlstate == "RV101"
