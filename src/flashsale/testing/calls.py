"""Helpers for tests: connect, query, call a function, wait until a session is blocked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import namedtuple_row

# psycopg's own type is generic in the row; a row here is a namedtuple made at run time.
Connection = psycopg.Connection[Any]


def connect(url: str, role: str | None = None, **kwargs: Any) -> Connection:
    """A new session, in autocommit mode unless told otherwise.

    role: the role to act as, such as flashsale_tool. kwargs: as psycopg.connect takes them.
    """
    kwargs = {"autocommit": True, "connect_timeout": 10} | kwargs
    conn: Connection = psycopg.connect(url, **kwargs)
    if role:
        conn.execute(sql.SQL("set role {}").format(sql.Identifier(role)))
        if not conn.autocommit:
            conn.commit()
    return conn


@contextmanager
def sessions(url: str, count: int, **kwargs: Any) -> Iterator[list[Connection]]:
    """So many connections, closed at the end."""
    opened = [connect(url, **kwargs) for _ in range(count)]
    try:
        yield opened
    finally:
        for conn in opened:
            conn.close()


def rows(conn: Connection, query: str, *args: Any) -> list[Any]:
    """All rows of a query, as namedtuples."""
    with conn.cursor(row_factory=namedtuple_row) as cursor:
        return cursor.execute(query.encode(), args or None).fetchall()


def one(conn: Connection, query: str, *args: Any) -> Any:
    """The only row of a query, as a namedtuple."""
    (row,) = rows(conn, query, *args)
    return row


def value(conn: Connection, query: str, *args: Any) -> Any:
    """The only value of a query."""
    return one(conn, query, *args)[0]


def call_all(conn: Connection, function: str, *args: Any) -> list[Any]:
    """The rows that a flashsale function returns."""
    marks = ", ".join(["%s"] * len(args))
    return rows(conn, f"select * from flashsale.{function}({marks})", *args)  # noqa: S608 - a test's own


def call(conn: Connection, function: str, *args: Any) -> Any:
    """The only row that a flashsale function returns."""
    (row,) = call_all(conn, function, *args)
    return row


def item(conn: Connection, sku: str = "shoe", *, stock: int = 1, **terms: Any) -> int:
    """Puts an item on sale: 10.00 EUR, a minute to pay, unless `terms` say otherwise.

    Returns its item_id. terms: arguments of flashsale.create_item, without their p_.
    """
    terms = {
        "sku": sku,
        "name": sku.title(),
        "stock": stock,
        "hold_seconds": 60,
        "price": 1000,
        "currency": "EUR",
    } | terms
    named = ", ".join(f"p_{name} => %s" for name in terms)
    query = f"select item_id from flashsale.create_item({named})"  # noqa: S608 - a test's own names
    return int(value(conn, query, *terms.values()))


def pay(conn: Connection, order: Any, session: str | None = None) -> Any:
    """The money for an order's latest payment attempt arrives; returns the row of the order.

    order: a row with payment_id and amount. session: the provider's name for the payment.
    """
    session = session or f"s{order.payment_id}"
    return call(conn, "pay", order.payment_id, session, order.amount, "EUR")


def violations(conn: Connection) -> list[Any]:
    """The rows of flashsale.violation: one per broken promise, so there must be none."""
    return rows(conn, "select * from flashsale.violation")


def eventually(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Polls until the condition holds, and returns what it returned. Errors: AssertionError."""
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {condition}")
        time.sleep(0.005)


def blocked(watcher: Connection, session: Connection) -> bool:
    """Whether a session waits for another one's lock. Call it from a third one, with eventually."""
    return bool(
        value(watcher, "select cardinality(pg_blocking_pids(%s)) > 0", session.info.backend_pid)
    )


class Call(threading.Thread):
    """A call made in the background; `result()` joins it and raises what it raised."""

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._function = function
        self._result: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._result = self._function()
        except BaseException as error:
            self._error = error

    def result(self, seconds: float = 30.0) -> Any:
        """Errors: AssertionError if the call has not returned by then, and what it raised."""
        self.join(seconds)
        if self.is_alive():
            raise AssertionError(f"the call did not return within {seconds} s")
        if self._error:
            raise self._error
        return self._result
