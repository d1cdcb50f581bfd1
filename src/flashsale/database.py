"""The service's side of the SQL API: one method a function, and the pool that they share.

The pool opens without the database and recovers by itself when it goes away and comes back; until
then callers get Unavailable. Every wait is bounded: for a connection (Overloaded, nothing was
written), in Postgres (statement_timeout: rolled back), and last by the request's deadline, after
which nobody can tell what happened, so the connection is dropped. Nobody can either after a
cancelled wait for a synchronous standby: Unavailable too, and a retry with the same key finds out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

import asyncpg
import msgspec

from flashsale.errors import Overloaded, Refused, Unavailable
from flashsale.migrate import VERSION_QUERY
from flashsale.models import (
    Item,
    ItemChanges,
    NewItem,
    Order,
    Payment,
    PaymentEvent,
    Reservation,
)
from flashsale.settings import Settings

log = logging.getLogger("flashsale.api")

ROLE = "flashsale_api"
_MAX_BIGINT = 2**63 - 1
_WAIT_FOR_STANDBY = "SyncRepWaitForLSN"
"""The function in Postgres that warns when a commit's wait for the standby was cancelled. Such a
commit is reported as a success; whether the standby has it, nobody knows. By the function, because
the message is translated and its SQLSTATE is that of any warning."""


class PoolUse(NamedTuple):
    size: int
    idle: int
    waiting: int


class Gauges(NamedTuple):
    """What /metrics asks the database."""

    sweep_lag_seconds: float | None  # null: never swept
    queues: list[tuple[str, int, float, int]]  # name, depth, oldest_age_seconds, dead
    orders: list[tuple[str, int]]  # status, orders


class Database:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pool: asyncpg.Pool | None = None
        self._waiting = 0
        self._lost = False

    async def open(self) -> None:
        s = self._settings
        role = s.database_role or ROLE
        options = {"application_name": "flashsale-api"}
        if role != "none":  # a pooler in between may take no other start-up parameters
            options["role"] = role
            options["statement_timeout"] = f"{s.statement_timeout_seconds * 1000:.0f}"
        self._pool = await asyncpg.create_pool(
            s.database_url,
            min_size=0,  # opening must not need the database
            max_size=s.pool_size,
            max_inactive_connection_lifetime=0,
            timeout=s.acquire_timeout_seconds,
            statement_cache_size=s.statement_cache_size,
            server_settings=options,
            reset=_keep,
        )
        await self._warm(self._pool)

    async def close(self) -> None:
        if self._pool is None:
            return
        try:
            async with asyncio.timeout(self._settings.request_deadline_seconds):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    @property
    def pool_use(self) -> PoolUse:
        if self._pool is None:
            return PoolUse(0, 0, 0)
        return PoolUse(self._pool.get_size(), self._pool.get_idle_size(), self._waiting)

    # Items

    async def create_item(self, new: NewItem) -> Item:
        row = await self._one(
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
        row = await self._one(
            "select * from flashsale.change_item($1, $2::jsonb)",
            item_id,
            msgspec.json.encode(changes).decode(),
        )
        return _item(row)

    async def item_status(self, item_id: int) -> Item:
        return _item(await self._one("select * from flashsale.item_status($1::int)", item_id))

    async def items(self, limit: int, after: int) -> list[Item]:
        rows = await self._all("select * from flashsale.items($1, $2)", limit, after)
        return [_item(row) for row in rows]

    # Orders

    async def reserve(
        self, item_id: int, customer_id: str, idempotency_key: str | None, wait: bool
    ) -> Reservation:
        row = await self._one(
            "select * from flashsale.reserve($1, $2, $3, $4)",
            item_id,
            customer_id,
            idempotency_key,
            wait,
        )
        order = None if row["order_id"] is None else _order(row)
        return Reservation(row["outcome"], order, row["retry_at"])

    async def cancel(self, order_id: str, customer_id: str) -> Order:
        return await self._order(
            "select * from flashsale.cancel($1, $2)", _number(order_id), customer_id
        )

    async def request_payment(self, order_id: str, customer_id: str) -> Order:
        return await self._order(
            "select * from flashsale.request_payment($1, $2)", _number(order_id), customer_id
        )

    async def order_status(self, order_id: str, customer_id: str) -> Order:
        return await self._order(
            "select * from flashsale.order_status($1, $2)", _number(order_id), customer_id
        )

    async def orders_of(self, customer_id: str, limit: int, before: str | None) -> list[Order]:
        rows = await self._all(
            "select * from flashsale.orders_of($1, $2, $3)",
            customer_id,
            limit,
            None if before is None else _number(before),
        )
        return [_order(row) for row in rows]

    async def orders_by_id(self, order_ids: Sequence[str]) -> list[Order]:
        rows = await self._all(
            "select * from flashsale.orders_by_id($1::bigint[])", [int(o) for o in order_ids]
        )
        return [_order(row) for row in rows]

    # Money

    async def record_payment_event(self, event: PaymentEvent) -> str:
        row = await self._one(
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
        """What is installed, as flashsale.migrate.expected_version() says it."""
        return str((await self._one(VERSION_QUERY))[0])

    async def sweep_lag_seconds(self) -> float | None:
        """Seconds since anybody swept; None: never, or not for a day."""
        row = await self._one("select min(lag_seconds) from flashsale.sweep_status")
        return None if row[0] is None else float(row[0])

    async def gauges(self) -> Gauges:
        async with self._connection() as connection:
            lag = await connection.fetchval("select min(lag_seconds) from flashsale.sweep_status")
            queues = await connection.fetch(
                "select queue, depth, oldest_age_seconds, dead from flashsale.queue_status"
            )
            orders = await connection.fetch("select outcome, orders from flashsale.outcome_totals")
        return Gauges(lag, [tuple(q) for q in queues], [tuple(o) for o in orders])

    # How a call is made

    async def _all(self, sql: str, *args: object) -> list[asyncpg.Record]:
        async with self._connection() as connection:
            rows: list[asyncpg.Record] = await connection.fetch(sql, *args)
            return rows

    async def _one(self, sql: str, *args: object) -> asyncpg.Record:
        return (await self._all(sql, *args))[0]

    async def _order(self, sql: str, *args: object) -> Order:
        return _order(await self._one(sql, *args))

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        deadline = asyncio.get_running_loop().time() + self._settings.request_deadline_seconds
        connection = await self._acquire()
        assert self._pool is not None
        doubts: list[object] = []

        def note(_connection: object, message: Any) -> None:
            if message.server_source_function == _WAIT_FOR_STANDBY:
                doubts.append(message)

        connection.add_log_listener(note)
        try:
            async with asyncio.timeout_at(deadline):
                yield connection
            if doubts:
                raise Unavailable("It is not certain that this would survive a failover.")
        except TimeoutError as error:
            connection.terminate()
            raise Unavailable("The database did not answer in time.") from error
        except asyncpg.PostgresError as error:
            if not _outdated(error):
                raise
            connection.terminate()
            raise Unavailable("The database was just updated.") from error
        except (OSError, asyncpg.InternalClientError) as error:
            connection.terminate()
            raise Unavailable("The connection to the database broke.") from error
        except asyncpg.InterfaceError as error:
            if isinstance(error, ValueError):  # an argument that its SQL type can't hold
                raise Refused("bad_value") from error
            if not connection.is_closed():
                raise
            raise Unavailable("The connection to the database broke.") from error
        finally:
            with suppress(Exception):  # the pool drops what it can't take back
                connection.remove_log_listener(note)
                await self._pool.release(connection, timeout=1)

    async def _acquire(self) -> Any:
        pool = self._pool
        if pool is None or pool.is_closing():
            raise Unavailable("The service is stopping or has not started.")
        self._waiting += 1
        try:
            connection = await pool.acquire(timeout=self._settings.acquire_timeout_seconds)
        except TimeoutError as error:
            if pool.get_idle_size() == 0 and pool.get_size() >= pool.get_max_size():
                raise Overloaded from error
            raise self._unavailable(error) from error
        except asyncpg.PostgresError as error:  # it refuses to be connected to
            if (error.sqlstate or "").startswith("53"):
                raise Overloaded from error
            raise self._unavailable(error) from error
        except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            raise self._unavailable(error) from error
        finally:
            self._waiting -= 1
        if self._lost:
            self._lost = False
            log.info("database is back")
        return connection

    def _unavailable(self, error: Exception) -> Unavailable:
        if not self._lost:
            self._lost = True
            log.warning("database is away: %s", type(error).__name__)
        return Unavailable()

    async def _warm(self, pool: asyncpg.Pool) -> None:
        """Connects ahead of the first requests, if the database is there."""
        calls = (self._acquire() for _ in range(self._settings.pool_size))
        for connection in await asyncio.gather(*calls, return_exceptions=True):
            if not isinstance(connection, BaseException):
                await pool.release(connection)


async def _keep(_connection: object) -> None:
    """A connection goes back to the pool as it is: no call of ours leaves anything behind."""


def _outdated(error: asyncpg.PostgresError) -> bool:
    """Whether the connection's plans are of functions that migrate has replaced since."""
    return (
        error.sqlstate in ("0A000", "26000")  # result type changed; prepared statement gone
        or (
            error.sqlstate == "XX000"
            and str(error).startswith(("cache lookup failed", "could not open relation"))
        )
    )


def _number(order_id: str) -> int:
    """The order's number; what is none can't be the id of an order."""
    if order_id.isascii() and order_id.isdecimal() and order_id[0] != "0":
        number = int(order_id[:20])
        if number <= _MAX_BIGINT:
            return number
    raise Refused("unknown_order")


def _item(row: asyncpg.Record) -> Item:
    return Item(*row)


def _order(row: asyncpg.Record) -> Order:
    return Order(
        order_id=str(row["order_id"]),
        item_id=row["item_id"],
        customer_id=row["customer_id"],
        status=row["status"],
        ticket=row["ticket"],
        position=row["position"],
        created_at=row["created_at"],
        reserved_at=row["reserved_at"],
        expires_at=row["expires_at"],
        paid_at=row["paid_at"],
        ended_at=row["ended_at"],
        payment=_payment(row) if row["payment_id"] is not None else None,
    )


def _payment(row: asyncpg.Record) -> Payment:
    return Payment(
        payment_id=str(row["payment_id"]),
        status=row["payment_status"],
        amount=row["amount"],
        currency=row["currency"],
        checkout_url=row["checkout_url"],
    )
