"""The feed: each change is told once, in one order, and never behind what was read already."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from flashsale.testing import call_all
from flashsale.testing.clock import Clock
from support import (
    Connection,
    call,
    connect,
    item,
    many,
    one,
    pay,
    reserve,
    rows,
    settle,
    sweep,
    value,
)


def publish(db: Connection) -> None:
    while call(db, "publish_events").more:
        pass


def feed(db: Connection, after: int = 0) -> list[Any]:
    """Publishes, and reads everything after an event."""
    publish(db)
    return call_all(db, "events", after, 1000)


def story(db: Connection, order: Any) -> list[str]:
    """What the feed tells of an order."""
    return [event.type for event in feed(db) if event.order_id == order.order_id]


def new_order(db: Connection, **terms: Any) -> Any:
    return reserve(db, item(db, **terms), "ann")


# Every change is told


def paid(db: Connection, clock: Clock) -> Any:
    order = new_order(db)
    pay(db, order)
    return order


def paid_at_a_till(db: Connection, clock: Clock) -> Any:
    order = new_order(db)
    call(db, "pay_offline", order.order_id, "till 1")
    return order


def cancelled(db: Connection, clock: Clock) -> Any:
    order = new_order(db)
    call(db, "cancel", order.order_id)
    return order


def left_the_line(db: Connection, clock: Clock) -> Any:
    order = new_order(db, stock=0)
    call(db, "cancel", order.order_id)
    return order


def expired(db: Connection, clock: Clock) -> Any:
    order = new_order(db)
    clock.advance(60)
    call(db, "expire")
    return order


def promoted(db: Connection, clock: Clock) -> Any:
    order = new_order(db, stock=0)
    call(db, "restock", order.item_id, 1)
    settle(db)
    return order


def unserved(db: Connection, clock: Clock) -> Any:
    order = new_order(db, stock=0)
    call(db, "close_item", order.item_id)
    settle(db)
    return order


def refunded(db: Connection, clock: Clock) -> Any:
    order = paid(db, clock)
    call(db, "refund_order", order.order_id, "broken")
    return order


def given_back(db: Connection, clock: Clock) -> Any:
    order = new_order(db, refund_seconds=60)
    pay(db, order)
    call(db, "cancel", order.order_id, "ann")
    return order


def extended(db: Connection, clock: Clock) -> Any:
    order = new_order(db)
    call(db, "extend_holds", order.item_id, 60, "slow bank")
    return order


def settling(db: Connection, clock: Clock) -> Any:
    order = new_order(db)
    job = one(db, "select * from flashsale.take_payment_jobs(1, 30)")
    call(db, "payment_opened", job.job_id, job.tries, job.payment_id, "s1", "https://pay/1")
    clock.advance(60)
    call(db, "expire")
    return order


def paid_while_settling(db: Connection, clock: Clock) -> Any:
    order = settling(db, clock)
    db.execute("select flashsale.pay(%s, 's1', 1000, 'EUR', %s)", [order.payment_id, clock.at(-30)])
    return order


def settled_for_too_long(db: Connection, clock: Clock) -> Any:
    order = settling(db, clock)
    clock.advance(2)
    call(db, "expire")
    return order


def voided_while_settling(db: Connection, clock: Clock) -> Any:
    order = settling(db, clock)
    job = one(db, "select * from flashsale.take_payment_jobs(10, 30)")
    call(db, "payment_voided", job.job_id, job.tries, job.payment_id)
    return order


def lost_to_an_outage(db: Connection, clock: Clock) -> Any:
    order = new_order(db)
    db.execute("select flashsale.note_provider(true)")
    clock.advance(60)
    call(db, "expire")
    return order


STORIES: dict[Callable[[Connection, Clock], Any], str] = {
    paid: "created paid",
    paid_at_a_till: "created paid",
    cancelled: "created cancelled",
    left_the_line: "created cancelled",
    expired: "created expired",
    promoted: "created reserved",
    unserved: "created unserved",
    refunded: "created paid refunded",
    given_back: "created paid refunded",
    extended: "created extended",
    settling: "created settling",
    paid_while_settling: "created settling paid",
    settled_for_too_long: "created settling expired",
    voided_while_settling: "created settling expired",
    lost_to_an_outage: "created waiting",
}


@pytest.mark.parametrize("happens", STORIES, ids=lambda happens: happens.__name__)
def test_each_change_of_an_order_is_told_once_and_in_order(
    db: Connection, clock: Clock, happens: Callable[[Connection, Clock], Any]
) -> None:
    order = happens(db, clock)
    told = [f"order.{change}" for change in STORIES[happens].split()]
    assert story(db, order) == told
    settle(db)
    assert story(db, order)[: len(told)] == told
