"""`flashsale export`: the orders of an item as CSV, for spreadsheets and other programs."""

from __future__ import annotations

import csv
from typing import Any, TextIO

import psycopg
from psycopg.rows import dict_row

from flashsale.database.operators import as_operator, connected
from flashsale.database.sqlstates import is_not_set_up, is_ours
from flashsale.refusals import CommandError

PAGE = 1000
# The answer of a call, and what changes by itself or is a secret of the customer.
_LEFT_OUT = {"outcome", "retry_at", "position", "checkout_url", "chance", "forecast_as_of"}
# What makes a spreadsheet take a text for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def export(url: str, item_id: int, out: TextIO) -> int:
    """Writes the orders of an item, by ticket. Returns how many there are.

    They are read a page at a time, in a transaction each, so an export in the middle of a sale is
    in nobody's way; an order that changes meanwhile is written as it was when its page was read.
    Errors: CommandError.
    """
    count = 0
    with connected(as_operator(url)) as conn:
        writer: csv.DictWriter[str] | None = None
        after: int | None = None
        while True:
            page = _PageOfOrders(conn, item_id, after)
            if writer is None:
                writer = csv.DictWriter(out, page.columns, extrasaction="ignore")
                writer.writeheader()
            for row in page.orders:
                writer.writerow({name: cell(value) for name, value in row.items()})
            count += len(page.orders)
            if page.next is None:
                return count
            after = page.next


class _PageOfOrders:
    """A page of orders, and after which order the next one begins."""

    def __init__(self, conn: psycopg.Connection[Any], item_id: int, after: int | None):
        with conn.cursor(row_factory=dict_row) as cursor:
            try:
                found = cursor.execute(
                    "select * from flashsale.orders_of_item(%s, null, %s, %s)",
                    [item_id, after, PAGE],
                ).fetchall()
            except psycopg.Error as error:
                raise _explained(error) from None
            names = [column.name for column in cursor.description or []]
        self.columns = [name for name in names if name not in _LEFT_OUT]
        self.orders = [row for row in found if row["outcome"] == "found"]
        more = [row["order_id"] for row in found if row["outcome"] == "more"]
        self.next: int | None = more[0] if more else None


def cell(value: Any) -> Any:
    """A value as a spreadsheet can't mistake it: times with their zone, and no formulas."""
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return value


def _explained(error: psycopg.Error) -> CommandError:
    said = error.diag.message_primary or str(error)
    if is_ours(error):
        return CommandError(f"{said} ({error.diag.message_detail})")
    if is_not_set_up(error):
        return CommandError(
            f"{said}. Is the database migrated (`flashsale migrate`), and is the login a member of "
            "flashsale_operator?"
        )
    return CommandError(f"the database could not be read: {said}")
