"""The service's side of the SQL API: one method a function, and which connections it takes.

Reserving, paying and reading have connections of their own, so that none starves another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import asyncpg
import msgspec

from flashsale.api.intake import Gather, Wish
from flashsale.api.problems import Refused
from flashsale.database.admission import Lag
from flashsale.database.connections import Connections, Use
from flashsale.database.migrate import VERSION_QUERY
from flashsale.models import (
    Item,
    ItemChanges,
    NewItem,
    Order,
    OrderStatus,
    Payment,
    PaymentEvent,
    Reservation,
)
from flashsale.settings import Settings

_MAX_BIGINT = 2**63 - 1


class Gauges(NamedTuple):
    """What /metrics asks the database."""

    sweeps: list[tuple[str, float]]  # pg_cron, worker or manual, lag_seconds
    queues: list[tuple[str, int, float, int]]  # name, depth, oldest_age_seconds, dead
    orders: list[tuple[str, int]]  # status, orders


class Database:
    def __init__(self, settings: Settings) -> None:
        s = settings
        self._reserve = Connections(
            s,
            "reserve",
            size=s.reserve_connections,
            # Gathered calls queue in front; who is held may have the only connection for as long.
            wait_ms=s.reserve_wait_ms + s.reserve_lock_ms,
            deadline_ms=s.reserve_deadline_ms,
            lock_ms=s.reserve_lock_ms,
        )
        self._pay = Connections(
            s,
            "pay",
            size=s.pay_connections,
            wait_ms=s.pay_wait_ms,
            deadline_ms=s.pay_deadline_ms,
        )
        self._read = self._reserve
        if s.read_connections:
            self._read = Connections(
                s,
                "read",
                size=s.read_connections,
                wait_ms=s.read_wait_ms,
                deadline_ms=s.read_deadline_ms,
            )
        self._pools = {self._reserve, self._pay, self._read}
        self._lag = Lag()
        self._gather = Gather(self._reserve_one, self._reserve_many, _reservation, s, self._lag)

    async def open(self) -> None:
        self._lag.start()
        await asyncio.gather(*(pool.open() for pool in self._pools))

    async def close(self) -> None:
        self._lag.stop()
        await asyncio.gather(*(pool.close() for pool in self._pools))

    @property
    def use(self) -> dict[str, Use]:
        """Who uses the connections, by what they are for."""
        use = {pool.name: pool.use for pool in self._pools}
        use["reserve"] = use["reserve"]._replace(waiting=self._gather.waiting)
        return use

    # Items

    async def create_item(self, new: NewItem) -> Item:
        row = await self._read.one(
            "select * from flashsale.create_item($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
            new.sku,
            new.name,
            new.price,
            new.currency,
            new.stock,
            new.hold_seconds,
            new.opens_at,
            new.closes_at,
            new.max_waiting,
            new.late_payment,
        )
        return _item(row)

    async def change_item(self, item_id: int, changes: ItemChanges) -> Item:
        row = await self._read.one(
            "select * from flashsale.change_item($1, $2::jsonb)",
            item_id,
            msgspec.json.encode(changes).decode(),
        )
        return _item(row)

    async def item_status(self, item_id: int) -> Item:
        return _item(await self._read.one("select * from flashsale.item_status($1::int)", item_id))

    async def items(self, limit: int, after: int) -> list[Item]:
        rows = await self._read.all("select * from flashsale.items($1, $2)", limit, after)
        return [_item(row) for row in rows]

    # Orders

    def retry_after(self) -> int | None:
        """In how many seconds to ask again, if a request for a unit would be refused now."""
        return self._gather.retry_after()

    async def reserve(self, wish: Wish) -> Reservation:
        return await self._gather.reserve(wish)

    async def _reserve_one(self, wish: Wish, deadline: float) -> asyncpg.Record:
        return await self._reserve.one(
            "select * from flashsale.reserve($1, $2, $3, $4)", *wish, deadline=deadline
        )

    async def _reserve_many(self, wishes: Sequence[Wish], deadline: float) -> list[asyncpg.Record]:
        columns = zip(*wishes, strict=True)
        return await self._reserve.all(
            "select * from flashsale.reserve_many($1, $2, $3, $4)", *columns, deadline=deadline
        )

    async def cancel(self, order_id: str, customer_id: str) -> Order:
        row = await self._pay.one(
            "select * from flashsale.cancel($1, $2)", _number(order_id), customer_id
        )
        return _order(row)

    async def request_payment(self, order_id: str, customer_id: str) -> Order:
        row = await self._pay.one(
            "select * from flashsale.request_payment($1, $2)", _number(order_id), customer_id
        )
        return _order(row)

    async def order_status(self, order_id: str, customer_id: str) -> Order:
        row = await self._read.one(
            "select * from flashsale.order_status($1, $2)", _number(order_id), customer_id
        )
        return _order(row)

    async def orders_of(self, customer_id: str, limit: int, before: str | None) -> list[Order]:
        rows = await self._read.all(
            "select * from flashsale.orders_of($1, $2, $3)",
            customer_id,
            limit,
            None if before is None else _number(before),
        )
        return [_order(row) for row in rows]

    async def orders_by_id(self, order_ids: Sequence[str]) -> list[Order]:
        rows = await self._read.all(
            "select * from flashsale.orders_by_id($1::bigint[])", [int(o) for o in order_ids]
        )
        return [_order(row) for row in rows]

    # Money

    async def record_payment_event(self, event: PaymentEvent) -> str:
        row = await self._pay.one(
            "select flashsale.record_payment_event($1, $2, $3, $4, $5, $6, $7)",
            event.event_id,
            event.type,
            event.session_id,
            event.payment_id,
            event.amount,
            event.currency,
            event.occurred_at,
        )
        return str(row[0])

    # The service itself

    async def version(self) -> str:
        """What is installed, as flashsale.database.version.expected_version() says it."""
        return str((await self._pay.one(VERSION_QUERY))[0])

    async def sweep_lag_seconds(self) -> float | None:
        """Seconds since anybody swept; None: never, or not for a day."""
        row = await self._pay.one("select min(lag_seconds) from flashsale.sweep_status")
        return None if row[0] is None else float(row[0])

    async def gauges(self) -> Gauges:
        async with self._read.connection() as connection:
            sweeps = await connection.fetch(
                "select split_part(runner, ':', 1), min(lag_seconds) from flashsale.sweep_status "
                "group by 1"
            )
            queues = await connection.fetch(
                "select queue, depth, oldest_age_seconds, dead from flashsale.queue_status"
            )
            orders = await connection.fetch("select outcome, orders from flashsale.outcome_totals")
        return Gauges(*([tuple(row) for row in rows] for rows in (sweeps, queues, orders)))


def _number(order_id: str) -> int:
    """The order's number; what is none can't be the id of an order."""
    if order_id.isascii() and order_id.isdecimal() and order_id[0] != "0":
        number = int(order_id[:20])
        if number <= _MAX_BIGINT:
            return number
    raise Refused("unknown_order")


def _item(row: asyncpg.Record) -> Item:
    return Item(*row)


def _reservation(row: asyncpg.Record) -> Reservation:
    outcome, *order, retry_at = row
    return Reservation(outcome, None if order[0] is None else _made(*order), retry_at)


def _order(row: asyncpg.Record) -> Order:
    _, *order, _ = row
    return _made(*order)


def _made(
    order_id: int,
    item_id: int,
    customer_id: str,
    status: OrderStatus,
    ticket: int,
    position: int | None,
    created_at: datetime,
    reserved_at: datetime | None,
    expires_at: datetime | None,
    paid_at: datetime | None,
    ended_at: datetime | None,
    payment_id: int | None,
    payment_status: str,
    amount: int,
    currency: str,
    checkout_url: str | None,
) -> Order:
    """An order, from the columns of flashsale.order_row as they come."""
    payment = None
    if payment_id is not None:
        payment = Payment(str(payment_id), payment_status, amount, currency, checkout_url)
    return Order(
        str(order_id),
        item_id,
        customer_id,
        status,
        ticket,
        position,
        created_at,
        reserved_at,
        expires_at,
        paid_at,
        ended_at,
        payment,
    )
