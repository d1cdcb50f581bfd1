"""Connections to the database for one kind of work, so that no storm of another kind takes them.

They open without the database and recover by themselves when it goes away and comes back; until
then callers get Unavailable. Every wait is bounded: for a connection (Overloaded, nothing was
written), in Postgres (statement_timeout: rolled back), and last by the deadline, after which
nobody can tell what happened, so the connection is dropped. Nobody can either after a cancelled
wait for a synchronous standby: Unavailable too, and a retry with the same key finds out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

import asyncpg

from flashsale.api.problems import Overloaded, Refused, Unavailable
from flashsale.database.admission import Gate
from flashsale.settings import Settings

log = logging.getLogger("flashsale.api")

ROLE = "flashsale_api"
_WAIT_FOR_STANDBY = "SyncRepWaitForLSN"
"""The function in Postgres that warns when a commit's wait for the standby was cancelled. Such a
commit is reported as a success; whether the standby has it, nobody knows. By the function, because
the message is translated and its SQLSTATE is that of any warning."""


class Use(NamedTuple):
    size: int
    idle: int
    waiting: int


class Connections:
    """size connections; wait_ms: at most so long for one of them; deadline_ms: in all.

    A statement may take half of the deadline. lock_ms: and wait so long for another's lock.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        *,
        size: int,
        wait_ms: int,
        deadline_ms: int,
        lock_ms: int | None = None,
    ) -> None:
        self.name = name
        self._settings = settings
        self._size = size
        self._wait_seconds = wait_ms / 1000
        self._deadline_seconds = deadline_ms / 1000
        self._options = {"application_name": f"flashsale-api {name}"}
        role = settings.database_role or ROLE
        if role != "none":  # a pooler in between may take no other start-up parameters
            self._options["role"] = role
            self._options["statement_timeout"] = f"{max(1, deadline_ms // 2)}"
            if lock_ms is not None:
                self._options["lock_timeout"] = f"{lock_ms}"
        self._gate = Gate(wait_ms, size)
        self._pool: asyncpg.Pool | None = None
        self._waiting = 0
        self._lost = False

    async def open(self) -> None:
        self._pool = await asyncpg.create_pool(
            self._settings.database_url,
            min_size=0,  # opening must not need the database
            max_size=self._size,
            max_inactive_connection_lifetime=0,
            timeout=self._settings.acquire_timeout_seconds,
            statement_cache_size=self._settings.statement_cache_size,
            server_settings=self._options,
            reset=_keep,
        )
        await self._warm(self._pool)

    async def close(self) -> None:
        if self._pool is None:
            return
        try:
            async with asyncio.timeout(self._deadline_seconds):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    @property
    def use(self) -> Use:
        if self._pool is None:
            return Use(0, 0, 0)
        return Use(self._pool.get_size(), self._pool.get_idle_size(), self._waiting)

    async def all(
        self, sql: str, *args: object, deadline: float | None = None
    ) -> list[asyncpg.Record]:
        """All rows. deadline: the loop's time by which it has to be done, if not the usual."""
        async with self.connection(deadline) as connection:
            rows: list[asyncpg.Record] = await connection.fetch(sql, *args)
            return rows

    async def one(self, sql: str, *args: object, deadline: float | None = None) -> asyncpg.Record:
        """The first row."""
        return (await self.all(sql, *args, deadline=deadline))[0]

    @asynccontextmanager
    async def connection(self, deadline: float | None = None) -> AsyncIterator[Any]:
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
        if pool.get_size() < self._size:  # may have to connect, which is not queueing
            wait_seconds = max(wait_seconds, self._settings.acquire_timeout_seconds)
        try:
            connection = await pool.acquire(timeout=wait_seconds)
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
        calls = (self._acquire() for _ in range(self._size))
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
