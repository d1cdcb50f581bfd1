"""The API's side of the SQL functions: one method per function, on connections of its kind.

Reserving, paying and reading have separate connections, so that none of them starves another.
Verbs of orders and items that exist are on those of paying, where they wait for locks in turns.
Columns are read by name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from operator import itemgetter
from typing import NamedTuple

import asyncpg
import msgspec

from flashsale.cursors import cursor_of, event_of
from flashsale.database.connections import Connections, Use
from flashsale.database.version import VERSION_QUERY
from flashsale.models import (
    Draw,
    DrawEntry,
    Event,
    Events,
    Forecast,
    Item,
    ItemChanges,
    NewItem,
    Order,
    Payment,
    PaymentEvent,
    UnitAnswer,
    UnitRequest,
)
from flashsale.refusals import Refused
from flashsale.settings import Settings

_MAX_BIGINT = 2**63 - 1


class QueueGauge(NamedTuple):
    """The jobs of one queue: waiting ones, the age of the oldest, and those that were given up."""

    name: str
    depth: int
    oldest_age_seconds: float
    dead: int


class EventDeliveryGauge(NamedTuple):
    """How far the feed was delivered to events_url."""

    behind: int
    oldest_undelivered_seconds: float
    failures: int
    """Of the next event, in a row."""


class Gauges(NamedTuple):
    """The gauges of /metrics that come from the database."""

    sweep_lags: dict[str, float]
    """Seconds since the last sweep, by who sweeps: pg_cron, worker or manual."""
    queues: list[QueueGauge]
    orders: dict[str, int]
    """Number of orders by outcome."""
    failing_items: int
    """Items whose sweep fails."""
    filling_wait_seconds: float
    """How long filling has been waiting for somebody's open transaction."""
    settling_orders: int
    """Holds past their deadline about whose money the provider is being asked."""
    provider_down: bool
    """Whether the workers say that the payment provider is down."""
    event_delivery: EventDeliveryGauge | None
    """None: nothing was ever to be delivered."""


class Database:
    """The SQL functions, as methods. Errors of each: as of Connections.connection()."""

    def __init__(self, settings: Settings) -> None:
        """Connects only with open()."""
        s = settings
        self._reserve = Connections(
            s,
            "reserve",
            size=s.reserve_connections,
            # Requests queue in the intake, in front of this. If there is only one connection, a
            # request that waits for a lock may occupy it until it gets the lock.
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
            lock_ms=s.lock_ms,
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
        # Of its own, because a replica whose pools are busy serves, and so is ready.
        self._health = Connections(
            s,
            "health",
            size=1,
            wait_ms=_milliseconds(s.readiness_timeout_seconds),
            deadline_ms=2 * _milliseconds(s.readiness_timeout_seconds),
            idle_seconds=0 if s.read_connections else 1,  # a replica that needs two in all
        )

    async def open(self) -> None:
        """Opens the connections; connects if the database is there."""
        await asyncio.gather(*(pool.open() for pool in (*self._pools, self._health)))

    async def close(self) -> None:
        """Waits for calls under way, at most until their deadlines."""
        await asyncio.gather(*(pool.close() for pool in (*self._pools, self._health)))

    @property
    def use(self) -> dict[str, Use]:
        """How the connections are used, by the kind of work that they are for."""
        return {pool.name: pool.use for pool in self._pools}

    # Items

    async def create_item(self, new: NewItem, staff: str | None, key: str | None) -> Item:
        """Puts an item on sale. staff: who, for the history. key: the Idempotency-Key."""
        row = await self._pay.one_about(
            ("sku", new.sku),
            "select * from flashsale.create_item($1, $2, $3, $4, $5, $6, $7::timestamptz, "
            "$8::timestamptz, $9, $10, $11, $12, $13, $14, $15, p_staff => $16, "
            "p_idempotency_key => $17, p_draw => $18)",
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
            new.settle_seconds,
            new.refund_seconds,
            new.max_per_order,
            new.max_per_customer,
            new.product,
            staff,
            key,
            new.draw,
        )
        return _item(row)

    async def change_item(
        self, item_id: int, changes: ItemChanges, staff: str | None, key: str | None
    ) -> Item:
        """Changes the terms of an item, all or nothing. staff, key: as of create_item()."""
        row = await self._pay.one_about(
            ("item", item_id),
            "select * from flashsale.change_item($1, $2::jsonb, p_staff => $3, "
            "p_idempotency_key => $4)",
            item_id,
            msgspec.json.encode(changes).decode(),
            staff,
            key,
        )
        return _item(row)

    async def item_status(self, item_id: int) -> Item:
        """An item and where its units are."""
        return _item(await self._read.one("select * from flashsale.item_status($1::int)", item_id))

    async def items(self, limit: int, after: int) -> list[Item]:
        """A page of the items, by item_id; after: the last item_id of the page before."""
        rows = await self._read.all("select * from flashsale.items($1, $2)", limit, after)
        return [_item(row) for row in rows]

    async def items_with(self, sku: str) -> list[Item]:
        """The item with this sku, if there is one."""
        rows = await self._read.all("select * from flashsale.items(p_sku => $1)", sku)
        return [_item(row) for row in rows]

    async def draw_status(self, item_id: int) -> Draw:
        """The draw of an item, and what is public of it by now."""
        row = await self._read.one("select * from flashsale.draw_status($1::int)", item_id)
        return Draw(*_draw_columns(row))

    async def draw_entries(self, item_id: int, limit: int, after: str | None) -> list[DrawEntry]:
        """A page of the list of a draw, once it is complete; after: an entry_id, exclusive."""
        rows = await self._read.all(
            "select * from flashsale.draw_entries($1, $2, $3)",
            item_id,
            0 if after is None else _number(after),
            limit,
        )
        return [DrawEntry(str(row["entry_id"]), row["quantity"], row["ticket"]) for row in rows]

    # The feed

    async def events(self, after: str | None, limit: int) -> Events:
        """A page of the feed; after: a cursor. Errors: Refused if that is none of ours, or old."""
        last = 0 if after is None else event_of(after)
        if last is None:
            raise Refused(
                "bad_value",
                "after is not a cursor of this feed.",
                hint="Pass next of the last answer, or an event_id; leave it out to begin.",
            )
        rows = await self._read.all("select * from flashsale.events($1, $2)", last, limit)
        events = [_event(row) for row in rows]
        return Events(events, events[-1].event_id if events else cursor_of(last))

    # Orders

    async def reserve(self, request: UnitRequest, deadline: float) -> asyncpg.Record:
        """The row of one request for units; unit_answer() reads it.

        deadline: the event loop's time by which the answer has to be back.
        """
        if request.quantity == 1:
            return await self._reserve.one(
                "select * from flashsale.reserve($1, $2, $3, $4)", *request[:4], deadline=deadline
            )
        return await self._reserve.one(
            "select * from flashsale.reserve($1, $2, $3, $4, $5, $6)", *request, deadline=deadline
        )

    async def reserve_many(
        self, requests: Sequence[UnitRequest], deadline: float
    ) -> list[asyncpg.Record]:
        """The rows of several requests, in their order. deadline: as of reserve()."""
        columns = list(zip(*requests, strict=True))
        quantities = columns[UnitRequest._fields.index("quantity")]
        if quantities.count(1) == len(quantities):
            return await self._reserve.all(
                "select * from flashsale.reserve_many($1, $2, $3, $4)",
                *columns[:4],
                deadline=deadline,
            )
        return await self._reserve.all(
            "select * from flashsale.reserve_many($1, $2, $3, $4, $5, $6)",
            *columns,
            deadline=deadline,
        )

    async def find_held(self, requests: Sequence[UnitRequest], deadline: float) -> list[bool]:
        """Which of several requests would have to wait for a lock. deadline: as of reserve()."""
        row = await self._reserve.one(
            "select flashsale.find_held($1, $2, $3) as held",
            [request.item_id for request in requests],
            [request.customer_id for request in requests],
            [request.idempotency_key for request in requests],
            deadline=deadline,
        )
        return list(row["held"])

    def unit_answer(self, row: asyncpg.Record) -> UnitAnswer:
        """The answer in a row of reserve() or reserve_many()."""
        outcome, order_id = row["outcome"], row["order_id"]
        if outcome == "has_other_order":
            return UnitAnswer(outcome, None, None, str(order_id))
        return UnitAnswer(outcome, None if order_id is None else _order(row), row["retry_at"])

    async def cancel(self, order_id: str, customer_id: str, key: str | None) -> Order:
        """Ends a reservation, or a place in the line. key: the Idempotency-Key."""
        number = _number(order_id)
        row = await self._pay.one_about(
            number,
            "select * from flashsale.cancel($1, $2, p_idempotency_key => $3)",
            number,
            customer_id,
            key,
        )
        return _order(row)

    async def request_payment(self, order_id: str, customer_id: str, key: str | None) -> Order:
        """Starts another attempt to pay. key: the Idempotency-Key."""
        number = _number(order_id)
        row = await self._pay.one_about(
            number,
            "select * from flashsale.request_payment($1, $2, p_idempotency_key => $3)",
            number,
            customer_id,
            key,
        )
        return _order(row)

    async def order_status(self, order_id: str, customer_id: str) -> Order:
        """An order of this customer."""
        row = await self._read.one(
            "select * from flashsale.order_status($1, $2)", _number(order_id), customer_id
        )
        return _order(row)

    async def orders_of(self, customer_id: str, limit: int, before: str | None) -> list[Order]:
        """A page of the customer's orders, newest first; before: an order_id, exclusive."""
        rows = await self._read.all(
            "select * from flashsale.orders_of($1, $2, $3)",
            customer_id,
            limit,
            None if before is None else _number(before),
        )
        return [_order(row) for row in rows]

    async def orders_of_item(
        self, item_id: int, status: str | None, after: str | None, limit: int
    ) -> tuple[list[Order], str | None]:
        """A page of an item's orders, by ticket, and the order_id after which the next one begins.

        after: an order_id, exclusive. The second is None if this is the last page.
        """
        rows = await self._read.all(
            "select * from flashsale.orders_of_item($1, $2, $3, $4)",
            item_id,
            status,
            None if after is None else _number(after),
            limit,
        )
        more = [str(row["order_id"]) for row in rows if row["outcome"] == "more"]
        orders = [_order(row) for row in rows if row["outcome"] != "more"]
        return orders, more[0] if more else None

    async def orders_by_id(self, order_ids: Sequence[str]) -> list[Order]:
        """Orders of any customers, as their event streams show them."""
        rows = await self._read.all(
            "select * from flashsale.orders_by_id($1::bigint[])", [int(o) for o in order_ids]
        )
        return [_order(row) for row in rows]

    # Money

    async def refund_order(
        self, order_id: str, reason: str, return_units: bool, staff: str | None, key: str | None
    ) -> Order:
        """Refunds a paid order, for staff. return_units: its unit goes back on sale."""
        number = _number(order_id)
        row = await self._pay.one_about(
            number,
            "select * from flashsale.refund_order($1, $2, $3, $4, p_idempotency_key => $5)",
            number,
            reason,
            return_units,
            staff,
            key,
        )
        return _order(row)

    async def pay_offline(
        self, order_id: str, reference: str, staff: str | None, key: str | None
    ) -> Order:
        """Records that a till has taken the money for an order."""
        number = _number(order_id)
        row = await self._pay.one_about(
            number,
            "select * from flashsale.pay_offline($1, $2, $3, p_idempotency_key => $4)",
            number,
            reference,
            staff,
            key,
        )
        return _order(row)

    async def extend_holds(
        self, item_id: int, seconds: int, reason: str, staff: str | None, key: str | None
    ) -> int:
        """Moves all running deadlines of an item later; returns how many."""
        row = await self._pay.one_about(
            ("item", item_id),
            "select flashsale.extend_holds($1, $2, $3, $4, p_idempotency_key => $5) as extended",
            item_id,
            seconds,
            reason,
            staff,
            key,
        )
        return int(row["extended"])

    async def record_payment_event(self, event: PaymentEvent, payload: str | None = None) -> str:
        """Stores an event of the payment provider, and returns what it led to.

        payload: the event as it came, which is kept if it can't be used.
        """
        row = await self._pay.one_about(
            _about(event),
            "select flashsale.record_payment_event($1, $2, $3, $4, $5, $6, $7, $8, $9) as outcome",
            event.event_id,
            event.type,
            event.session_id,
            event.payment_id,
            event.amount,
            event.currency,
            event.occurred_at,
            payload,
            event.payable,
        )
        return str(row["outcome"])

    # The service itself

    async def version(self) -> str:
        """The version of what is installed, for version.serves_us()."""
        return str((await self._health.one(VERSION_QUERY))["version"])

    async def sweep_lag_seconds(self) -> float | None:
        """Seconds since the last sweep of any runner; None: never, or not for a day."""
        row = await self._health.one(
            "select min(lag_seconds) as lag_seconds from flashsale.sweep_status"
        )
        return None if row["lag_seconds"] is None else float(row["lag_seconds"])

    async def gauges(self) -> Gauges:
        """The gauges of /metrics that come from the database."""
        async with self._read.connection() as connection:
            sweeps = await connection.fetch(
                "select split_part(runner, ':', 1) as runner, min(lag_seconds) as lag_seconds "
                "from flashsale.sweep_status group by 1"
            )
            queues = await connection.fetch(
                "select queue, depth, oldest_age_seconds, dead from flashsale.queue_status"
            )
            orders = await connection.fetch("select status, orders from flashsale.status_totals")
            failing = await connection.fetchval(
                "select count(distinct item_id) from flashsale.sweep_failure"
            )
            waiting = await connection.fetchval(
                "select max(waiting_seconds) from flashsale.filling_blocker"
            )
            settling = await connection.fetchval("select count(*) from flashsale.settling_order")
            is_down = await connection.fetchval("select is_down from flashsale.provider_status")
            delivery = await connection.fetchrow(
                "select behind, oldest_undelivered_seconds, failures from flashsale.event_delivery"
            )
        return Gauges(
            {row["runner"]: row["lag_seconds"] for row in sweeps},
            [
                QueueGauge(row["queue"], row["depth"], row["oldest_age_seconds"], row["dead"])
                for row in queues
            ],
            {row["status"]: row["orders"] for row in orders},
            failing,
            waiting or 0.0,
            settling,
            is_down,
            delivery and EventDeliveryGauge(*delivery),
        )


def _event(row: asyncpg.Record) -> Event:
    order_id = row["order_id"]
    return Event(
        cursor_of(row["event_id"]),
        row["type"],
        row["at"],
        row["item_id"],
        None if order_id is None else str(order_id),
        msgspec.json.decode(row["data"]),
    )


def _number(order_id: str) -> int:
    """The order_id as a number. Errors: Refused for a text that can't be an order's id."""
    if order_id.isascii() and order_id.isdecimal() and order_id[0] != "0":
        number = int(order_id[:20])
        if number <= _MAX_BIGINT:
            return number
    raise Refused("unknown_order")


def _about(event: PaymentEvent) -> int | str:
    """The order of an event, which the payment is named after unless it is a later attempt."""
    payment_id = event.payment_id or ""
    if payment_id.isascii() and payment_id.isdecimal():
        return int(payment_id)
    return event.event_id or ""


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


_item_columns = itemgetter(*Item.__struct_fields__)
_draw_columns = itemgetter(*Draw.__struct_fields__)


def _item(row: asyncpg.Record) -> Item:
    return Item(*_item_columns(row))


def _order(row: asyncpg.Record) -> Order:
    payment = None
    if row["payment_id"] is not None:
        payment = Payment(
            payment_id=str(row["payment_id"]),
            status=row["payment_status"],
            amount=row["amount"],
            currency=row["currency"],
            checkout_url=row["checkout_url"],
            reference=row["reference"],
        )
    forecast = None
    if row["chance"] is not None:
        forecast = Forecast(chance=row["chance"], as_of=row["forecast_as_of"])
    return Order(
        order_id=str(row["order_id"]),
        item_id=row["item_id"],
        customer_id=row["customer_id"],
        status=row["status"],
        ticket=row["ticket"],
        position=row["position"],
        forecast=forecast,
        created_at=row["created_at"],
        reserved_at=row["reserved_at"],
        expires_at=row["expires_at"],
        paid_at=row["paid_at"],
        ended_at=row["ended_at"],
        payment=payment,
        late_order_id=None if row["late_order_id"] is None else str(row["late_order_id"]),
        quantity=row["quantity"],
        units=row["units"],
    )
