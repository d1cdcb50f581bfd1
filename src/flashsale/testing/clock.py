"""A clock that a test sets: it replaces `flashsale.clock()`, the only source of time."""

from __future__ import annotations

from datetime import datetime, timedelta

from flashsale.testing.calls import Connection, value


class Clock:
    """The test database's clock: it stands still until a test sets it."""

    def __init__(self, conn: Connection) -> None:
        """conn: a session of the database's owner, in autocommit mode."""
        self._conn = conn
        conn.execute("create table flashsale_data.test_clock (at timestamptz primary key)")
        conn.execute(
            "insert into flashsale_data.test_clock values (date_trunc('second', clock_timestamp()))"
        )
        conn.execute(
            "create or replace function flashsale.clock() returns timestamptz language sql "
            "volatile security definer as 'select at from flashsale_data.test_clock'"
        )

    def at(self, seconds: float = 0) -> datetime:
        """The moment so many seconds from now."""
        now: datetime = value(self._conn, "select flashsale.clock()")
        return now + timedelta(seconds=seconds)

    def advance(self, seconds: float) -> None:
        self.set(self.at(seconds))

    def set(self, moment: datetime, seconds: float = 0) -> None:
        """Sets the clock to a moment, or to so many seconds after it."""
        self._conn.execute(
            "update flashsale_data.test_clock set at = %s", [moment + timedelta(seconds=seconds)]
        )
