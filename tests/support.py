"""Helpers of the SQL tests: the functions of flashsale.testing, and one for each verb."""

from __future__ import annotations

from typing import Any

from flashsale.testing import (
    Call,
    Connection,
    blocked,
    call,
    call_all,
    cluster_folder,
    connect,
    eventually,
    item,
    one,
    pay,
    postgres_server,
    put_cluster,
    rows,
    server_folder,
    sessions,
    value,
)

__all__ = [
    "Call",
    "Connection",
    "blocked",
    "call",
    "call_all",
    "cluster_folder",
    "connect",
    "eventually",
    "item",
    "item_status",
    "many",
    "one",
    "pay",
    "postgres_server",
    "put_cluster",
    "reserve",
    "rows",
    "server_folder",
    "sessions",
    "settle",
    "status",
    "statuses",
    "sweep",
    "value",
]


def reserve(conn: Connection, item_id: int, customer: str, key: str | None = None) -> Any:
    return call(conn, "reserve", item_id, customer, key)


def many(conn: Connection, item_id: int, customers: list[str]) -> list[Any]:
    """Reserves for all customers in one batch."""
    return rows(
        conn,
        "select * from flashsale.reserve_many(array_fill(%s::int, array[%s::int]), %s)",
        item_id,
        len(customers),
        customers,
    )


def sweep(conn: Connection) -> Any:
    return call(conn, "sweep")


def settle(conn: Connection) -> None:
    """Sweeps three times: an item's second visit fills holes and gives their units."""
    for _ in range(3):
        while sweep(conn).more:
            pass


def status(conn: Connection, order_id: int) -> Any:
    return call(conn, "order_status", order_id)


def item_status(conn: Connection, item_id: int) -> Any:
    return call(conn, "item_status", item_id)


def statuses(conn: Connection, item_id: int) -> dict[str, str]:
    """Each customer's status, which is that of their latest order."""
    return {
        row.customer_id: row.status
        for row in rows(
            conn,
            "select customer_id, status from flashsale.order_status where item_id = %s "
            "and customer_id is not null order by ticket",
            item_id,
        )
    }
