"""An internal tool of somebody else, which calls the SQL API as UPGRADING.md asks of tools."""

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
COLUMNS = """outcome, order_id, item_id, customer_id, status, ticket, position, created_at,
  reserved_at, expires_at, paid_at, ended_at"""
"""A tool names the columns that it reads, because `select *` changes when new ones come."""
NEW_ROW_TYPE = ("42804", "42846")
"""SQLSTATEs of calls that are under way while a migration gives a row type more columns."""


class SqlTool:
    """Reserves, looks and cancels in autocommit, on one connection that it keeps.

    Every answer goes into the history. errors: what the caller got, but for calls that met a new
    row type: these are asked again at once, and counted in `again`. slowest: seconds of the slowest
    call.
    """

    def __init__(self, url: str, history: History, item_id: int) -> None:
        self.calls = self.again = 0
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
            conn, f"select {COLUMNS} from flashsale.reserve(%s, %s, %s)", self._item_id, who, key
        )
        if order is None:
            return
        self._history.answer(reserving, 201, told(order))
        await self._call(
            conn,
            "select status, position from flashsale.order_status where order_id = %s",
            order["order_id"],
        )
        await self._call(
            conn,
            "select available, waiting from flashsale.item_status where item_id = %s",
            self._item_id,
        )
        if n % CANCELS_EACH:
            return
        place = (order["item_id"], order["ticket"])
        cancelling = self._history.ask("cancel", self._item_id, customer=who, order=place)
        order = await self._call(
            conn, f"select {COLUMNS} from flashsale.cancel(%s, %s)", order["order_id"], who
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
            try:
                return await (await conn.execute(query.encode(), args)).fetchone()
            except psycopg.Error as error:
                if error.sqlstate not in NEW_ROW_TYPE:
                    raise
            self.again += 1
            return await (await conn.execute(query.encode(), args)).fetchone()
        except psycopg.Error as error:
            what = query[query.find(" from ") :][:45]
            self.errors.append(f"{what}: {error.sqlstate} {error}".strip())
            return None
        finally:
            self.slowest = max(self.slowest, time.monotonic() - began)


def told(order: dict[str, Any]) -> dict[str, Any]:
    """A row as the JSON that the HTTP API would show."""
    return {name: it.isoformat() if hasattr(it, "isoformat") else it for name, it in order.items()}
