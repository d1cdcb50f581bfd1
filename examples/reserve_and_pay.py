"""Reserves a unit and pays for it from Python, like a tool of your own that takes the money itself.

With `make run` in another terminal, and an item on sale (see README.md in this folder):

    export DATABASE_URL=$(cat .flashsale/database.url)
    .venv/bin/python examples/reserve_and_pay.py ITEM_ID CUSTOMER KEY

KEY names this request: a repeated run with the same key gets the same order, and no other.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import psycopg
from psycopg.rows import namedtuple_row

RESERVE = "select * from flashsale.reserve(%s, %s, %s)"
PAY = "select * from flashsale.pay_offline(%s, %s)"


def main(item_id: int, customer: str, key: str) -> int:
    """Reserves, and pays for what was reserved. Returns the exit status."""
    # autocommit makes each call a transaction. The order is committed when its call has returned.
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as conn:
        # The URL of `make run` is that of the owner, who may act as any role. Make your own login a
        # member of this role: then it may do only what the role may do.
        conn.execute("set role flashsale_tool")
        order = ask(conn, RESERVE, item_id, customer, key)
        if order.status != "reserved":
            place = f", position {order.position} in the line" if order.position else ""
            print(f"{customer}: {order.status or order.outcome}{place}")
            return 0
        print(f"{customer}: reserved with ticket {order.ticket} until {order.expires_at:%H:%M:%S}")
        # Here your tool takes the money. The second argument is your name for this payment.
        paid = ask(conn, PAY, order.order_id, f"till-{order.order_id}")
        print(f"{customer}: {paid.outcome}")
        return 0


def ask(conn: psycopg.Connection[Any], query: str, *values: object) -> Any:
    """The row that a function returns. A refusal is an outcome in the row, and no error."""
    with conn.cursor(row_factory=namedtuple_row) as cursor:
        return cursor.execute(query.encode(), values).fetchone()


if __name__ == "__main__":
    try:
        sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3]))
    except psycopg.Error as error:  # misuse, such as an item that does not exist
        sys.exit(f"{error.sqlstate}: {error.diag.message_primary}")
