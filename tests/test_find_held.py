"""find_held tells who would have to wait for another transaction, and takes no ticket for that."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from flashsale.testing import Clock
from support import Connection, connect, item, reserve, rows, value

ROLE = "flashsale_tool"


def held(conn: Connection, item_id: int, *customers: str) -> list[bool]:
    found: list[bool] = value(
        conn,
        "select flashsale.find_held(array_fill(%s::int, array[%s::int]), %s::text[])",
        item_id,
        len(customers),
        list(customers),
    )
    return found


def everything(conn: Connection, item_id: int) -> list[Any]:
    return [
        value(conn, "select flashsale.issued_tickets(%s)", item_id),
        *rows(conn, "select * from flashsale_data.orders order by order_id"),
    ]


def test_a_customer_whose_order_is_being_placed_is_held(db: Connection, database_url: str) -> None:
    shoe = item(db, stock=9)
    reserve(db, shoe, "has one")
    with connect(database_url, autocommit=False) as tool, connect(database_url, ROLE) as conn:
        reserve(tool, shoe, "ann")
        before = everything(db, shoe)
        assert held(conn, shoe, "bob", "ann", "has one", "ann") == [False, True, False, True]
        assert everything(db, shoe) == before
        tool.commit()
        assert held(conn, shoe, "bob", "ann") == [False, False]


def test_whoever_is_held_at_one_item_is_free_at_another(db: Connection, database_url: str) -> None:
    shoe, hat = item(db), item(db, sku="hat")
    with connect(database_url, autocommit=False) as tool:
        reserve(tool, shoe, "ann")
        assert held(db, hat, "ann") == [False]


def test_a_customer_whose_key_is_being_used_is_held(db: Connection, database_url: str) -> None:
    """Although the order itself is an old one, which nobody has to wait for."""
    shoe = item(db)
    reserve(db, shoe, "ann")
    asked = f"select flashsale.find_held(array[{shoe}, {shoe}], '{{ann, ann}}', '{{k, another}}')"
    with connect(database_url, autocommit=False) as tool:
        reserve(tool, shoe, "ann", "k")
        assert held(db, shoe, "ann") == [False]
        assert value(db, asked) == [True, False]
        tool.rollback()
    assert value(db, asked) == [False, False]
    assert rows(db, "select from flashsale_data.order_keys") == []


def test_a_hold_that_is_over_and_locked_holds_its_customer(
    db: Connection, database_url: str, clock: Clock
) -> None:
    shoe = item(db, hold_seconds=60)
    order = reserve(db, shoe, "ann")
    with connect(database_url, autocommit=False) as tool:
        tool.execute(
            "select from flashsale_data.orders where order_id = %s for update", [order.order_id]
        )
        assert held(db, shoe, "ann") == [False]  # it would get this order
        clock.advance(61)
        assert held(db, shoe, "ann") == [True]
    assert held(db, shoe, "ann") == [False]
    assert value(db, "select status from flashsale_data.orders") == "reserved"  # not ended by this


def test_what_is_refused_waits_for_nobody(db: Connection) -> None:
    assert held(db, 17, "ann", "", "x" * 100_000) == [False] * 3
    assert value(db, "select flashsale.find_held('{}', '{}')") == []
    with pytest.raises(psycopg.Error, match="arrays of one length") as refused:
        db.execute("select flashsale.find_held('{1}', '{a, b}')")
    assert refused.value.sqlstate == "RV301"
