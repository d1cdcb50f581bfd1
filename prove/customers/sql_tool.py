"""An internal tool of somebody else: calls the SQL API without ever trying again."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

import psycopg
from psycopg.rows import dict_row

from prove.judge.history import History

PAUSE_SECONDS = 0.02
CANCELS_EACH = 2
"""Every second order is cancelled; the others expire."""


class SqlTool:
    """Reserves, looks and cancels in autocommit, on one connection that it keeps.

    Every answer goes into the history. errors: what a caller without retries got. slowest: seconds
    of the slowest call.
    """

    def __init__(self, url: str, history: History, item_id: int) -> None:
        self.calls = 0
        self.slowest = 0.0
        self.errors: list[str] = []
        self._url = url
        self._history = history
        self._item_id = item_id
        self._over = asyncio.Event()

    def stop(self) -> None:
        self._over.set()

    async def run(self) -> None:
        """Until stop()."""
        async with await psycopg.AsyncConnection.connect(
            self._url, autocommit=True, row_factory=dict_row
        ) as conn:
            await conn.execute("set role flashsale_tool")
            for n in itertools.count():
                if self._over.is_set():
                    return
                await self._use(conn, n)
                await asyncio.sleep(PAUSE_SECONDS)

    async def _use(self, conn: psycopg.AsyncConnection[dict[str, Any]], n: int) -> None:
        who, key = f"tool-customer-{n}", f"tool-{n}"
        reserving = self._history.ask("reserve", self._item_id, customer=who, key=key)
        order = await self._call(
            conn, "select * from flashsale.reserve(%s, %s, %s)", self._item_id, who, key
        )
        if order is None:
            return
        self._history.answer(reserving, 201, told(order))
        await self._call(
            conn, "select * from flashsale.order_status where order_id = %s", order["order_id"]
        )
        await self._call(
            conn, "select * from flashsale.item_status where item_id = %s", self._item_id
        )
        if n % CANCELS_EACH:
            return
        place = (order["item_id"], order["ticket"])
        cancelling = self._history.ask("cancel", self._item_id, customer=who, order=place)
        order = await self._call(
            conn, "select * from flashsale.cancel(%s, %s)", order["order_id"], who
        )
        if order:
            self._history.answer(cancelling, 200, told(order))

    async def _call(
        self, conn: psycopg.AsyncConnection[dict[str, Any]], query: str, *args: Any
    ) -> dict[str, Any] | None:
        """The first row; None after an error."""
        began = time.monotonic()
        self.calls += 1
        try:
            return await (await conn.execute(query.encode(), args)).fetchone()
        except psycopg.Error as error:
            self.errors.append(f"{query[:45]}: {error.sqlstate} {error}".strip())
            return None
        finally:
            self.slowest = max(self.slowest, time.monotonic() - began)


def told(order: dict[str, Any]) -> dict[str, Any]:
    """A row as the JSON that the HTTP API would show."""
    return {name: it.isoformat() if hasattr(it, "isoformat") else it for name, it in order.items()}
