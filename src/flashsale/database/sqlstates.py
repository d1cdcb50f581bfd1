"""What an error of Postgres means. All decisions about SQLSTATEs are in this module.

The SQL functions raise codes of their own, RVgnn, where g gives the HTTP status. So a new code
needs no change in Python. All other codes are standard SQLSTATEs.
"""

from __future__ import annotations

import re
from typing import NamedTuple, Protocol

import asyncpg

from flashsale.refusals import Refused

_OVERLOADED = "overloaded"
_UNAVAILABLE = "database_unavailable"
_BAD_VALUE = "bad_value"

SQLSTATES: dict[str, int | str] = {
    "RV1": 404,
    "RV2": 409,
    "RV3": 422,
    "RV4": 403,
    "22": _BAD_VALUE,  # data exception
    "40001": _OVERLOADED,  # serialization failure: nothing was written
    "40P01": _OVERLOADED,  # deadlock: nothing was written
    "53": _OVERLOADED,  # out of connections, memory, disk
    "55P03": _OVERLOADED,  # lock timeout
    "57014": _OVERLOADED,  # statement timeout: rolled back
    "57": _UNAVAILABLE,  # shutting down, starting up
    "58": _UNAVAILABLE,  # an error of the operating system
    "08": _UNAVAILABLE,  # connection broken
    "25006": _UNAVAILABLE,  # read only: a standby, before it is promoted
    # Before the first migrate, and while sql/ is replayed, schemas, functions and tables are
    # missing:
    "3F000": _UNAVAILABLE,
    "42883": _UNAVAILABLE,
    "42P01": _UNAVAILABLE,
}
"""By the longest prefix that is listed. A number: the HTTP status of an error that one of our
functions raised. A text: the code in refusals.CODES."""

_NAMES_AN_ITEM = {"sku_taken"}
"""Codes of which programs need the item that the detail names."""
_STATUSES = {_OVERLOADED: 503, _UNAVAILABLE: 503, _BAD_VALUE: 422}


class Meaning(NamedTuple):
    """What callers learn about an error: status, code and texts."""

    status: int
    code: str
    detail: str = ""
    hint: str | None = None
    item_id: int | None = None


def meaning(error: asyncpg.PostgresError) -> Meaning | None:
    """What callers learn about an error; None for an unexpected error.

    Errors that our functions raise carry their code as the constraint's name, and a message for
    people. Messages of Postgres itself are not shown to callers.
    """
    sqlstate = _sqlstate(error)
    if _met_in_another_index(error):
        return Meaning(503, _OVERLOADED)
    prefixes = (sqlstate[:length] for length in (5, 3, 2))
    match next((SQLSTATES[prefix] for prefix in prefixes if prefix in SQLSTATES), None):
        case None:
            return None
        case int(status):
            code = getattr(error, "constraint_name", None) or _BAD_VALUE
            detail = getattr(error, "message", None) or ""
            item_id = _item_in(error) if code in _NAMES_AN_ITEM else None
            return Meaning(status, code, detail, getattr(error, "hint", None), item_id)
        case code:
            return Meaning(_STATUSES[code], code)


def _item_in(error: asyncpg.PostgresError) -> int | None:
    found = re.search(r"item_id (\d+)$", getattr(error, "detail", None) or "")
    return int(found[1]) if found else None


def is_full(error: asyncpg.PostgresError) -> bool:
    """Whether the server refuses a connection because it has no room for one more."""
    return _sqlstate(error).startswith("53")


def is_held(error: BaseException) -> bool:
    """Whether another transaction was in the way of a request for a unit; nothing was written.

    The other transaction is a duplicate of the request, or another verb on the same order.
    """
    return _met_in_another_index(error) or (
        isinstance(error, asyncpg.PostgresError)
        and _sqlstate(error)
        in (
            "55P03",  # lock_timeout
            "40P01",  # deadlock
            "40001",  # the batch met too many duplicates
        )
    )


def _met_in_another_index(error: BaseException) -> bool:
    """Whether two requests of a customer met while an upgrade replaces an index; see indexes.py."""
    return isinstance(error, asyncpg.UniqueViolationError) and error.constraint_name in (
        "orders_one_live_per_customer",
        "orders_one_open_per_customer",
    )


def may_be_of_one_request(error: BaseException) -> bool:
    """Whether one request may have made its batch fail; nothing of the batch was written."""
    if isinstance(error, Refused):
        return error.code == _BAD_VALUE
    return is_held(error) or (
        isinstance(error, asyncpg.PostgresError) and _sqlstate(error).startswith(("22", "23", "RV"))
    )


def is_outdated(error: asyncpg.PostgresError) -> bool:
    """Whether the connection has plans for functions that migrate has replaced since."""
    sqlstate = _sqlstate(error)
    return (
        sqlstate in ("0A000", "26000")  # result type changed; prepared statement gone
        # A row type has got columns while the call was under way. Nothing was done.
        or sqlstate in ("42804", "42846")
        or (
            sqlstate == "XX000"
            and str(error).startswith(("cache lookup failed", "could not open relation"))
        )
    )


def is_passing(error: Exception) -> bool:
    """Whether a retry may succeed: the database was away or busy, or there was a deadlock."""
    if isinstance(error, asyncpg.PostgresError):
        return _sqlstate(error)[:2] in ("08", "40", "53", "55", "57", "58")
    if isinstance(error, asyncpg.InterfaceError):
        return not isinstance(error, ValueError)  # an argument that its SQL type can't hold
    return isinstance(error, OSError | TimeoutError | asyncpg.InternalClientError)


def kind(error: Exception) -> str:
    """The kind of an error: failures of one kind are logged once."""
    return f"{type(error).__name__} {getattr(error, 'sqlstate', '')}"


def _sqlstate(error: asyncpg.PostgresError) -> str:
    return error.sqlstate or ""


class Failed(Protocol):
    """An error of any driver."""

    sqlstate: str | None


def is_ours(error: Failed) -> bool:
    """Whether one of our functions raised it, with a message for people."""
    return (error.sqlstate or "").startswith("RV")


def is_not_set_up(error: Failed) -> bool:
    """Whether a schema, a function or the right to call it is missing."""
    return error.sqlstate in ("3F000", "42883", "42501")
