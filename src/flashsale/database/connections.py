"""Connections to the database: their role, their bounds, and how they survive an outage.

An object of the class Connections is a pool for one kind of work of the API, so that a storm of
another kind can't take its connections. A pool opens without the database, and recovers by itself
when the database goes away and comes back; until then callers get Unavailable.

Every wait is bounded. The wait for a connection ends in Overloaded: nothing was written. So does
the wait for an order or item that others have locked; turns.py bounds how many connections take
part in it. Any other wait in Postgres ends by the statement_timeout: the call was rolled back.
After the deadline of the whole call it is unknown what happened, so the connection is dropped. It
is also unknown after a cancelled wait for a synchronous standby. Callers get Unavailable then, and
a retry with the same key is safe.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Hashable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

import asyncpg

from flashsale.database.admission import Gate
from flashsale.database.sqlstates import is_full, is_outdated
from flashsale.database.times import read_all_times
from flashsale.database.turns import Turns
from flashsale.refusals import Overloaded, Refused, Unavailable
from flashsale.settings import Settings

log = logging.getLogger("flashsale.api")

API_ROLE = "flashsale_api"
WORKER_ROLE = "flashsale_worker"
NO_ROLE = "none"
"""As database_role: connections act as the login, and send no start-up parameters but their name,
because a pooler in between may take no others."""

_WAIT_FOR_STANDBY = "SyncRepWaitForLSN"
"""The function in Postgres that warns when a commit's wait for the standby was cancelled. Such a
commit is reported as a success; whether the standby has it, nobody knows. By the function, because
the message is translated and its SQLSTATE is that of any warning."""


def acting_role(settings: Settings, own: str) -> str:
    """The role that connections act as: `own`, unless the settings name another, or NO_ROLE."""
    return settings.database_role or own


def connection_arguments(
    settings: Settings,
    *,
    own_role: str,
    application_name: str,
    bounds: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Arguments of asyncpg.connect and asyncpg.create_pool. bounds: settings of the server.

    Errors: SettingsError without a database_url.
    """
    options = {"application_name": application_name}
    role = acting_role(settings, own_role)
    if role != NO_ROLE:
        options |= {"role": role} | dict(bounds or {})
    return {
        "dsn": settings.need_database_url(),
        "timeout": settings.acquire_timeout_seconds,
        "statement_cache_size": settings.statement_cache_size,
        "server_settings": options,
    }


async def create_pool(size: int, arguments: Mapping[str, Any], **more: Any) -> asyncpg.Pool:
    """A pool of up to `size` connections. The database need not be there yet."""
    return await asyncpg.create_pool(
        **arguments,
        **more,
        min_size=0,
        max_size=size,
        init=read_all_times,
        reset=_keep_as_it_is,
    )


async def close_pool(pool: asyncpg.Pool, timeout_seconds: float) -> None:
    """Waits for the calls under way; after the timeout their connections are dropped."""
    try:
        async with asyncio.timeout(timeout_seconds):
            await pool.close()
    except TimeoutError:
        pool.terminate()


_BROKE = "The connection to the database broke."
_ASYNCPG_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


class Use(NamedTuple):
    """How many connections there are, how many are idle, and how many calls wait for one."""

    size: int
    idle: int
    waiting: int


class Connections:
    """A pool of connections for one kind of work."""

    def __init__(
        self,
        settings: Settings,
        name: str,
        *,
        size: int,
        wait_ms: int,
        deadline_ms: int,
        lock_ms: int | None = None,
        idle_seconds: float = 0,
    ) -> None:
        """wait_ms bounds the wait for one of the `size` connections, deadline_ms the whole call.

        A statement may take half of the deadline. lock_ms: how long it may wait for a lock.
        idle_seconds: after which an idle connection is closed; 0: never.
        """
        self.name = name
        self._size = size
        self._wait_seconds = wait_ms / 1000
        self._deadline_seconds = deadline_ms / 1000
        self._connect_seconds = settings.acquire_timeout_seconds
        bounds = {"statement_timeout": f"{max(1, deadline_ms // 2)}"}
        if lock_ms is not None:
            bounds["lock_timeout"] = f"{lock_ms}"
        self._arguments = connection_arguments(
            settings,
            own_role=API_ROLE,
            application_name=f"flashsale-api {name}",
            bounds=bounds,
        )
        self._gate = Gate(wait_ms, size)
        self._turns = Turns(max(1, size // 2), (lock_ms or 0) / 1000)
        self._idle_seconds = idle_seconds
        self._pool: asyncpg.Pool | None = None
        self._waiting = 0
        self._lost = False

    async def open(self) -> None:
        """Opens the pool, and connects if the database is there."""
        self._pool = await create_pool(
            self._size, self._arguments, max_inactive_connection_lifetime=self._idle_seconds
        )
        await self._warm(self._pool)

    async def close(self) -> None:
        """Closes the pool; calls under way have until their deadline."""
        if self._pool is not None:
            await close_pool(self._pool, self._deadline_seconds)

    @property
    def use(self) -> Use:
        """How the connections are used now."""
        if self._pool is None:
            return Use(0, 0, 0)
        return Use(self._pool.get_size(), self._pool.get_idle_size(), self._waiting)

    async def all(
        self, sql: str, *args: object, deadline: float | None = None
    ) -> list[asyncpg.Record]:
        """All rows. deadline: the event loop's time by which they must be here; None: the usual."""
        async with self.connection(deadline) as connection:
            rows: list[asyncpg.Record] = await connection.fetch(sql, *args)
            return rows

    async def one(self, sql: str, *args: object, deadline: float | None = None) -> asyncpg.Record:
        """The first row."""
        return (await self.all(sql, *args, deadline=deadline))[0]

    async def one_about(self, about: Hashable, sql: str, *args: object) -> asyncpg.Record:
        """The same for a verb, which waits for others that have locked its order or item.

        about: that order or item. The calls about it take turns, and have one connection at most.
        """
        now = asyncio.get_running_loop().time()
        deadline = now + self._deadline_seconds
        return await self._turns.take(
            about, lambda: self.one(sql, *args, deadline=deadline), now + self._wait_seconds
        )

    @asynccontextmanager
    async def connection(self, deadline: float | None = None) -> AsyncIterator[Any]:
        """A connection for as long as the context lasts. deadline: as of all().

        Errors: Overloaded, Unavailable, Refused; what our SQL raises as asyncpg.PostgresError.
        """
        loop = asyncio.get_running_loop()
        if deadline is None:
            deadline = loop.time() + self._deadline_seconds
        connection = await self._acquire()
        began = loop.time()
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
        except Exception as error:
            refusal = _refusal(connection, error)
            if refusal is None:
                raise
            raise refusal from error
        finally:
            self._gate.called(loop.time() - began)
            with suppress(Exception):  # the pool drops what it can't take back
                connection.remove_log_listener(note)
                await self._pool.release(connection, timeout=1)

    async def _acquire(self) -> Any:
        pool = self._pool
        if pool is None or pool.is_closing():
            raise Unavailable("The service is stopping or has not started.")
        self._gate.enter(self._waiting)
        self._waiting += 1
        wait_seconds = self._wait_seconds
        if pool.get_size() < self._size:  # may have to connect first, which takes longer
            wait_seconds = max(wait_seconds, self._connect_seconds)
        try:
            connection = await pool.acquire(timeout=wait_seconds)
        except (OSError, *_ASYNCPG_ERRORS) as error:
            if _is_busy(pool, error):
                raise Overloaded from error
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
        calls = (self._acquire() for _ in range(self._size))
        for connection in await asyncio.gather(*calls, return_exceptions=True):
            if not isinstance(connection, BaseException):
                await pool.release(connection)


def _is_busy(pool: asyncpg.Pool, error: Exception) -> bool:
    """Whether there was no connection because all are in use, not because the database is away."""
    if isinstance(error, TimeoutError):
        return bool(pool.get_idle_size() == 0 and pool.get_size() >= pool.get_max_size())
    return isinstance(error, asyncpg.PostgresError) and is_full(error)


def _refusal(connection: Any, error: Exception) -> Refused | None:
    """The refusal that callers get for an error on a connection; None: they get the error itself.

    Drops the connection if its state is unknown.
    """
    if isinstance(error, asyncpg.InterfaceError):
        if isinstance(error, ValueError):  # an argument that its SQL type can't hold
            return Refused("bad_value")
        return Unavailable(_BROKE) if connection.is_closed() else None
    match error:
        case TimeoutError():  # before OSError, of which it is a kind
            refusal = Unavailable("The database did not answer in time.")
        case asyncpg.PostgresError() if is_outdated(error):
            refusal = Unavailable("The database was just updated.")
        case OSError() | asyncpg.InternalClientError():
            refusal = Unavailable(_BROKE)
        case _:
            return None
    connection.terminate()
    return refusal


async def _keep_as_it_is(_connection: object) -> None:
    """Returns a connection to the pool without a reset, because our calls leave no state in it."""
