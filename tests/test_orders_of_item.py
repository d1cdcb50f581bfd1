"""The orders of an item by ticket, in pages that are bounded; items by their sku; orders_of."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from flashsale.testing.clock import Clock
from support import Connection, call, connect, item, many, pay, reserve, rows, settle, value


@pytest.fixture
def staff(database_url: str) -> Any:
    with connect(database_url, "flashsale_operator") as conn:
        yield conn


def page(conn: Connection, *args: Any) -> tuple[list[Any], int | None]:
    """The orders of a page, and after which the next one begins."""
    marks = ", ".join(["%s"] * len(args))
    found = rows(conn, f"select * from flashsale.orders_of_item({marks})", *args)
    more = [row for row in found if row.outcome == "more"]
    assert more == found[len(found) - len(more) :]
    return [r for r in found if r.outcome == "found"], more[0].order_id if more else None


def pages(conn: Connection, item_id: int, status: str | None, limit: int) -> list[Any]:
    """All orders, a page at a time."""
    found, after = page(conn, item_id, status, None, limit)
    while after is not None:
        assert len(found) <= 200
        further, after = page(conn, item_id, status, after, limit)
        assert len(further) <= limit
        found += further
    return found


def test_orders_are_listed_by_ticket_without_those_of_other_items(
    db: Connection, staff: Connection
) -> None:
    boot, shoe, last = item(db, "boot", stock=5), item(db, stock=2), item(db, "last", stock=5)
    for other in (boot, last):
        many(db, other, ["ann", "bob"])
    many(db, shoe, ["eva", "dan", "cem", "bob", "ann"])
    for limit in (1, 2, 5, 1000):
        found = pages(staff, shoe, None, limit)
        assert [(o.ticket, o.customer_id) for o in found] == [
            (1, "eva"),
            (2, "dan"),
            (3, "cem"),
            (4, "bob"),
            (5, "ann"),
        ]
        assert {o.item_id for o in found} == {shoe}


def test_a_status_is_the_one_that_is_shown(db: Connection, staff: Connection, clock: Clock) -> None:
    shoe = item(db, stock=3, settle_seconds=0)
    ann, bob, _, _ = (reserve(db, shoe, customer) for customer in ("ann", "bob", "cem", "dan"))
    pay(db, ann)
    call(db, "cancel", bob.order_id, "bob")
    clock.advance(60)  # cem's hold is over, and no sweep has come
    expected = {"paid": ["ann"], "cancelled": ["bob"], "expired": ["cem"], "waiting": ["dan"]}
    for status in ("waiting", "reserved", "settling", "paid", "refunded", "expired", "cancelled"):
        found, _ = page(staff, shoe, status)
        assert [o.customer_id for o in found] == expected.get(status, []), status
        assert {o.status for o in found} <= {status}
    settle(db)


def test_holes_are_no_orders(db: Connection, staff: Connection, database_url: str) -> None:
    shoe = item(db, stock=3)
    with connect(database_url) as other:
        other.execute("begin")
        reserve(other, shoe, "ann")
        other.execute("rollback")
    reserve(db, shoe, "bob")
    settle(db)
    assert [o.customer_id for o in page(staff, shoe)[0]] == ["bob"]


def test_a_page_looks_at_a_bounded_number_of_orders(db: Connection, staff: Connection) -> None:
    """One paid order behind 10,500 that wait: pages without a row lead to it."""
    shoe = item(db, stock=0)
    for n in range(21):
        many(db, shoe, [f"c{n * 500 + c}" for c in range(500)])
    last = reserve(db, shoe, "ann")
    db.execute(
        "update flashsale_data.orders set status = 'cancelled', ended_at = flashsale.clock() "
        "where order_id = %s",
        [last.order_id],
    )
    db.execute("insert into flashsale_data.tallies values (%s, 0, 1)", [shoe])
    db.execute("analyze flashsale_data.orders")
    found, after = page(staff, shoe, "cancelled")
    assert (found, after) == ([], (shoe << 32) + 10_000)
    found, after = page(staff, shoe, "cancelled", after)
    assert ([o.customer_id for o in found], after) == (["ann"], None)


@pytest.mark.parametrize("args", [("gone", None, 10), ("void", None, 10), (None, None, 0)])
def test_impossible_pages_are_refused(
    db: Connection, staff: Connection, args: tuple[Any, ...]
) -> None:
    shoe = item(db)
    with pytest.raises(psycopg.Error) as error:
        page(staff, shoe, *args)
    assert error.value.sqlstate == "RV302"
    with pytest.raises(psycopg.Error) as error:
        page(staff, shoe + 1)
    assert error.value.sqlstate == "RV101"


def test_an_item_is_found_by_its_sku(db: Connection, staff: Connection) -> None:
    item(db, "boot")
    shoe = item(db)
    for conn in (db, staff):
        assert [i.item_id for i in rows(conn, "select * from flashsale.items('shoe')")] == [shoe]
        assert rows(conn, "select * from flashsale.items(p_sku => 'hat')") == []
        assert len(rows(conn, "select * from flashsale.items()")) == 2


def test_operators_may_list_the_orders_of_a_customer(db: Connection, staff: Connection) -> None:
    shoe = item(db)
    reserve(db, shoe, "ann")
    assert [o.item_id for o in rows(staff, "select * from flashsale.orders_of('ann')")] == [shoe]
    assert value(staff, "select count(*) from flashsale.orders_of('bob')") == 0
