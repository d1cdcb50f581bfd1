"""Staff of a sale: a till that takes money, and people who refund. By SQL, as internal tools."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.rows import dict_row

from prove.customers.sql_tool import told
from prove.judge.history import History

NAME = "proof"


class Staff:
    """Acts on the orders of customers. Every act and its answer go into the history."""

    def __init__(self, url: str, history: History) -> None:
        """url: of the tables' owner."""
        self._url = url
        self._history = history

    async def set_terms(self, item_id: int, terms: str) -> None:
        """Changes terms of an item. terms: JSON."""
        async with await psycopg.AsyncConnection.connect(self._url, autocommit=True) as conn:
            await conn.execute("select flashsale.change_item(%s, %s)", [item_id, terms])

    async def pay_offline(self, order: dict[str, Any]) -> bool:
        """The till has taken the money. Returns whether the order is paid now."""
        reference = f"till-{order['order_id']}"
        return await self._act(
            "pay_offline",
            order,
            "select * from flashsale.pay_offline(%s, %s, %s)",
            *(int(order["order_id"]), reference, NAME),
            key=reference,
        )

    async def refund(self, order: dict[str, Any], *, return_units: bool) -> bool:
        """Refunds a paid order. Returns whether it is refunded now."""
        return await self._act(
            "refund_order" if return_units else "keep_out",
            order,
            "select * from flashsale.refund_order(%s, 'it was broken', %s, %s)",
            *(int(order["order_id"]), return_units, NAME),
            units=0 if return_units else order["units"],
        )

    async def extend(self, item_id: int, seconds: int) -> None:
        """Gives all who hold a unit of an item more time."""
        op = self._history.ask("extend", item_id)
        try:
            async with await psycopg.AsyncConnection.connect(self._url, autocommit=True) as conn:
                query = "select flashsale.extend_holds(%s, %s, 'the bank was slow', %s)"
                await conn.execute(query, [item_id, seconds, NAME])
        except psycopg.Error:
            return
        self._history.answer(op, 200, {})

    async def _act(
        self,
        kind: str,
        order: dict[str, Any],
        query: str,
        *args: Any,
        key: str = "",
        units: int = 0,
    ) -> bool:
        op = self._history.ask(
            kind,
            order["item_id"],
            customer=order["customer_id"],
            order=(order["item_id"], order["ticket"]),
            key=key,
            units=units,
        )
        try:
            async with await psycopg.AsyncConnection.connect(
                self._url, autocommit=True, row_factory=dict_row
            ) as conn:
                row = await (await conn.execute(query.encode(), args)).fetchone()
        except psycopg.Error as error:
            if (error.sqlstate or "").startswith("RV"):
                self._history.answer(op, 409, {})
            return False
        if row:
            self._history.answer(op, 200, told(row))
        return row is not None
