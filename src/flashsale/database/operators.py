"""The login of operators: `flashsale psql` and `flashsale export` are not the database's owner.

A session of the owner that acts as an operator (SET ROLE) becomes the owner again with RESET ROLE.
So these commands log in as flashsale_staff, which is a member of flashsale_operator and nothing
else. Its password is made of the owner's: whoever has that could set any other.
"""

from __future__ import annotations

import hashlib
import hmac
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import sql

from flashsale.refusals import CommandError
from flashsale.settings import without_password

LOGIN = "flashsale_staff"

_LIMITS = (
    "alter role flashsale_staff connection limit 20",
    "alter role flashsale_staff set statement_timeout = '5min'",
    "alter role flashsale_staff set idle_in_transaction_session_timeout = '1min'",
)
_IS_OWNER = """
select exists (
  select from pg_namespace n join pg_roles r on r.rolname = current_user
  where n.nspname = 'flashsale' and (n.nspowner = r.oid or r.rolsuper))
"""


def as_operator(url: str) -> dict[str, Any]:
    """How to connect as an operator to the database at this URL, for psycopg.connect().

    The URL of the owner, or of a superuser, becomes that of flashsale_staff, which is made if
    it is missing. With any other URL, such as that of a person who is a member of
    flashsale_operator, it is that login.
    Errors: CommandError.
    """
    given = parsed(url)
    staff = given | {"user": LOGIN}
    staff.pop("password", None)
    if password := given.get("password"):
        staff["password"] = hmac.new(
            str(password).encode(), LOGIN.encode(), hashlib.sha256
        ).hexdigest()
    acting = given | {"options": "-c role=flashsale_operator"}
    with connected(given) as conn:
        if conn.execute(_IS_OWNER).fetchone() != (True,):
            return acting
        if _can_connect(staff):
            return staff
        with suppress(psycopg.Error):  # not a server on which the owner may make roles
            _make_login(conn, staff.get("password"))
    return staff if _can_connect(staff) else acting


def parsed(url: str) -> dict[str, Any]:
    """The parts of the URL. Errors: CommandError."""
    try:
        return psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError:  # its message has the URL in it, and the URL a password
        raise CommandError(
            "FLASHSALE_DATABASE_URL is not a URL like postgresql://user:password@host:5432/name"
        ) from None


def connected(parts: dict[str, Any]) -> psycopg.Connection[Any]:
    """A connection, in autocommit mode. Errors: CommandError."""
    try:
        return psycopg.connect(**{"connect_timeout": 10} | parts, autocommit=True)
    except psycopg.OperationalError as error:
        raise CommandError(
            f"the database can't be reached: {without_password(str(error)).strip()}"
        ) from None


def _can_connect(parts: dict[str, Any]) -> bool:
    try:
        connected(parts).close()
    except CommandError:
        return False
    return True


def _make_login(conn: psycopg.Connection[Any], password: str | None) -> None:
    """Makes the login, or gives it the password that belongs to the owner's present one."""
    with conn.transaction():
        if not conn.execute("select from pg_roles where rolname = %s", [LOGIN]).fetchone():
            conn.execute("create role flashsale_staff login in role flashsale_operator")
            for limit in _LIMITS:
                conn.execute(limit)
        conn.execute(
            sql.SQL("alter role flashsale_staff password {}").format(sql.Literal(password))
        )
