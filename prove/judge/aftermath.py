"""Checks after a crash or a failover: answers still hold, and every unit can be sold."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psycopg

from flashsale.testing.calls import Connection, call_all, pay
from prove.judge.records import NEXT

DRAIN_SECONDS = 30.0


def honours(order: Any, answer: Any) -> bool:
    """Whether an order (None: it does not exist) agrees with an answer that its customer got."""
    return (
        order is not None
        and order.ticket == answer.ticket
        and (answer.expires_at is None or order.expires_at == answer.expires_at)
        and (
            order.status == answer.status
            or order.status in NEXT.get(answer.status, ())
            or (answer.status, order.status) == ("expired", "reserved")  # over, but not yet marked
        )
    )


def sell_out(
    conn: Connection,
    pays: Callable[[Connection, Any], Any] = pay,
    drain_seconds: float = DRAIN_SECONDS,
) -> list[str]:
    """Sells every unit of every item to new customers. Returns the problems.

    conn: a superuser's. pays: lets the customer of a hold pay; it is called again as long as the
    hold is not paid. Items have at most 1,000 units. This works only if the holes in the lines are
    filled, because their units have to be sold too.
    """
    try:
        return _sell_out(conn, pays, time.monotonic() + drain_seconds)
    except psycopg.Error as error:
        return [f"selling out: {error}"]


def _sell_out(
    conn: Connection, pays: Callable[[Connection, Any], Any], deadline: float
) -> list[str]:
    conn.execute(  # so that new holds don't expire meanwhile
        "select flashsale.change_item(item_id, '{\"hold_seconds\": 600}') "
        "from flashsale.item_status"
    )
    while left := _unsold(conn):
        if time.monotonic() > deadline:
            return [f"units stay unsold: {left}"]
        for item in left:  # again in each round: some had holds that were about to end
            customers = [f"late {n}" for n in range(item.stock)]
            call_all(conn, "reserve_many", [item.item_id] * item.stock, customers)
        call_all(conn, "sweep")
        for hold in conn.execute(
            "select order_id, payment_id, payment_status, amount, checkout_url "
            "from flashsale.order_status where order_id = any (array("
            "select order_id from flashsale.open_reservation)) order by expires_at"
        ).fetchall():
            pays(conn, hold)
    return [str(row) for row in conn.execute("select * from flashsale.violation")]


def _unsold(conn: Connection) -> list[Any]:
    """Items with a unit that is not paid, or with a ticket that has no order."""
    return conn.execute(
        "select s.item_id, s.sku, s.stock, s.paid, s.issued, i.settled "
        "from flashsale.item_status s join flashsale_data.items i using (item_id) "
        "where s.paid < s.stock or i.settled < s.issued"
    ).fetchall()
