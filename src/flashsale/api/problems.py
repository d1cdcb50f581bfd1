"""Every answer that is not a success: one table of codes, one of SQLSTATEs, one handler.

Business errors come from SQL with their own code (`constraint`), message and hint, and a status by
their class, so a new one needs no Python but a line in CODES for the documentation.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, NamedTuple

import asyncpg
import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Example

from flashsale.models import Check, Order, Problem, Reservation

log = logging.getLogger("flashsale.api")

PROBLEM_JSON = "application/problem+json"
RETRY_SECONDS = 1  # what Retry-After says when there is no better answer


class Code(NamedTuple):
    status: int
    meaning: str


CODES: dict[str, Code] = {
    # the request
    "malformed_body": Code(400, "The body is not complete, valid JSON in UTF-8"),
    "bad_request": Code(400, "The request is not one that this service can read"),
    "customer_required": Code(
        401, "X-Customer-Id is missing, or not 1 to 128 printable characters"
    ),
    "bad_signature": Code(401, "Flashsale-Signature is missing, wrong or too old"),
    "not_found": Code(404, "There is nothing at this address"),
    "method_not_allowed": Code(405, "This address does not know this method"),
    "body_timeout": Code(408, "The body did not arrive in time"),
    "body_too_large": Code(413, "The body is larger than this service accepts"),
    "unsupported_media_type": Code(415, "The body must be application/json"),
    "bad_value": Code(422, "A field, header or query parameter is unknown or out of range"),
    "bad_payment": Code(422, "The event lacks the session, amount or currency of its money"),
    # the sale
    "unknown_item": Code(404, "There is no such item"),
    "unknown_order": Code(404, "There is no such order, or it is another customer's"),
    "sku_taken": Code(409, "There is already an item with this sku"),
    "withdraw_too_much": Code(409, "More units than can still be withdrawn"),
    "not_open": Code(409, "The sale has not begun; Retry-After says when it does"),
    "closed": Code(409, "The sale is over"),
    "paused": Code(409, "The sale is paused"),
    "sold_out": Code(409, "No unit is free, and the line is full or not wanted"),
    "already_paid": Code(409, "A paid order can't be cancelled"),
    "not_reserved": Code(409, "Only a reserved order can be paid"),
    "not_allowed": Code(403, "The service's database role may not do this"),
    # the service
    "internal_error": Code(500, "Something unexpected; it is in the log"),
    "overloaded": Code(503, "Not served inside the time bound; nothing was written"),
    "database_unavailable": Code(503, "The database does not answer; asking again is safe"),
    "not_ready": Code(503, "The service is up, but not ready to serve"),
}

# SQLSTATE -> status, by the longest prefix; None: the code's own status.
_OVERLOADED = "overloaded"
_UNAVAILABLE = "database_unavailable"
SQLSTATES: dict[str, str | int] = {
    "RV1": 404,
    "RV2": 409,
    "RV3": 422,
    "RV4": 403,
    "22": "bad_value",
    "40001": _OVERLOADED,  # serialization failure: nothing was written
    "40P01": _OVERLOADED,  # deadlock: nothing was written
    "53": _OVERLOADED,  # out of connections, memory, disk
    "55P03": _OVERLOADED,  # lock timeout
    "57014": _OVERLOADED,  # statement timeout: rolled back
    "57": _UNAVAILABLE,  # shutting down, starting up
    "58": _UNAVAILABLE,
    "08": _UNAVAILABLE,  # connection broken
    "25006": _UNAVAILABLE,  # read only: a standby, before it is promoted
    # While migrate replays sql/, or before it ever did:
    "3F000": _UNAVAILABLE,
    "42883": _UNAVAILABLE,
    "42P01": _UNAVAILABLE,
}

# Outcome of reserve -> status; every other outcome is the code of a problem.
GRANTED = {"reserved": 201, "waiting": 202, "existing": 200}
_REFUSED = {"invalid": "bad_value"}


class Refused(Exception):  # noqa: N818 - an answer, not a fault
    """A problem to answer with: a code of CODES, and what there is to say about this case."""

    def __init__(
        self,
        code: str,
        detail: str = "",
        *,
        hint: str | None = None,
        retry_seconds: int | None = None,
        checks: list[Check] | None = None,
    ) -> None:
        super().__init__(code)
        self.code = code
        self.detail = detail
        self.hint = hint
        self.retry_seconds = retry_seconds
        self.checks = checks or []


class Overloaded(Refused):
    """The request would have waited, or has waited, longer than its bound; nothing was written."""

    def __init__(self, retry_seconds: int | None = None) -> None:
        super().__init__(
            "overloaded",
            "The service is busier than it can be in time.",
            hint="Ask again after Retry-After seconds.",
            retry_seconds=retry_seconds,
        )


class Unavailable(Refused):
    """There is no connection to the database, or it broke while it was used."""

    def __init__(self, detail: str = "The database can't be reached.") -> None:
        super().__init__("database_unavailable", detail, hint="Ask again: a retry is safe.")


def granted(reservation: Reservation) -> Response[Order]:
    """The answer to a request for a unit. Raises Refused for a refusal."""
    order = reservation.order
    if order is None:
        raise refusal(reservation)
    return Response(
        order,
        status_code=GRANTED[reservation.outcome],
        headers={"Location": f"/orders/{order.order_id}"},
    )


def refusal(reservation: Reservation) -> Refused:
    """Why a request for a unit got none."""
    code = _REFUSED.get(reservation.outcome, reservation.outcome)
    return Refused(code, retry_seconds=_seconds_until(reservation.retry_at))


def refused(error: Refused) -> tuple[Problem, dict[str, str]]:
    """A refusal as a problem, and the headers that go with it."""
    said = problem(error.code, error.detail, hint=error.hint, checks=error.checks)
    seconds = error.retry_seconds or (RETRY_SECONDS if said.status == 503 else None)
    return said, {"Retry-After": str(seconds)} if seconds else {}


def _seconds_until(time: datetime | None) -> int | None:
    if time is None:
        return None
    return max(1, math.ceil((time - datetime.now(UTC)).total_seconds()))


def answer(request: Request[Any, Any, Any], error: Exception) -> Response[Problem]:
    """Turns whatever was raised into a problem; what nobody expected is logged and told nobody."""
    status, code, detail, hint, headers, checks = _explain(request, error)
    if status == 500:
        log.error(
            "unexpected error: method=%s path=%s error=%s",
            request.method,
            request.scope.get("path_template", "-"),
            type(error).__name__,
            exc_info=error,
        )
    return Response(
        problem(code, detail, status=status, hint=hint, checks=checks),
        status_code=status,
        media_type=PROBLEM_JSON,
        headers=headers,
    )


def problem(
    code: str,
    detail: str = "",
    *,
    status: int | None = None,
    hint: str | None = None,
    checks: list[Check] | None = None,
) -> Problem:
    known = CODES.get(code)
    status = status or (known.status if known else 500)
    return Problem(
        type=f"urn:flashsale:problem:{code}",
        title=known.meaning if known else HTTPStatus(status).phrase,
        status=status,
        code=code,
        detail=detail or (known.meaning + "." if known else HTTPStatus(status).phrase),
        hint=hint,
        checks=checks or [],
    )


class _Explained(NamedTuple):
    status: int
    code: str
    detail: str = ""
    hint: str | None = None
    headers: Mapping[str, str] | None = None
    checks: list[Check] | None = None


def _explain(request: Request[Any, Any, Any], error: Exception) -> _Explained:
    match error:
        case Refused():
            said, headers = refused(error)
            return _Explained(
                said.status, said.code, said.detail, said.hint, headers or None, said.checks
            )
        case asyncpg.PostgresError():
            return _explain_sqlstate(error)
        case asyncpg.DataError():  # an argument that its SQL type can't hold
            return _Explained(422, "bad_value")
        case asyncpg.InterfaceError() | OSError() | asyncio.TimeoutError():
            return _explain(request, Unavailable())
        case msgspec.ValidationError():
            return _Explained(422, "bad_value", str(error))
        case msgspec.DecodeError() | UnicodeError() | RecursionError():
            return _Explained(400, "malformed_body", "The body is not valid JSON in UTF-8.")
        case ValidationException():
            return _explain_validation(request, error)
        case HTTPException():
            return _explain_http(error)
    return _Explained(500, "internal_error")


def _explain_sqlstate(error: asyncpg.PostgresError) -> _Explained:
    sqlstate = error.sqlstate or ""
    found = next((SQLSTATES[p] for n in (5, 3, 2) if (p := sqlstate[:n]) in SQLSTATES), None)
    match found:
        case int():
            code = getattr(error, "constraint_name", None) or "bad_value"
            hint = getattr(error, "hint", None)
            return _Explained(found, code, getattr(error, "message", None) or "", hint)
        case "bad_value":
            return _Explained(422, "bad_value")
        case str():
            return _Explained(503, found, headers={"Retry-After": str(RETRY_SECONDS)})
    return _Explained(500, "internal_error")


def _explain_validation(request: Request[Any, Any, Any], error: ValidationException) -> _Explained:
    """Litestar refused an argument of a handler: the path, a header, the query or the body."""
    wrong: list[Any] = error.extra if isinstance(error.extra, list) else []
    if any(w.get("key") == "customer" for w in wrong) or (
        not wrong and "x-customer-id" not in request.headers
    ):
        return _Explained(401, "customer_required")
    if any(w.get("source") == "path" for w in wrong):
        return _Explained(404, "unknown_item")
    # A body that is not there shows as a KeyError, also beside other errors when it may be absent.
    said = [f"{w['key']}: {w['message']}" for w in wrong if w["message"] != repr(w["key"])]
    return _Explained(422, "bad_value", "; ".join(said) or "A JSON body is required.")


_HTTP_CODES = {
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "unsupported_media_type",
}


def _explain_http(error: HTTPException) -> _Explained:
    if error.status_code >= 500:
        return _Explained(500, "internal_error")
    code = _HTTP_CODES.get(error.status_code, "bad_request")
    return _Explained(CODES[code].status, code, headers=error.headers)


def answers(success: dict[int, tuple[Any, Any, str]], *codes: str) -> dict[int, ResponseSpec]:
    """An operation's answers for OpenAPI: status -> (type, example, description), and problems."""
    specs = {
        status: ResponseSpec(
            kind,
            generate_examples=False,
            description=description,
            examples=[Example(summary=description, value=msgspec.to_builtins(example))],
        )
        for status, (kind, example, description) in success.items()
    }
    by_status: defaultdict[int, list[str]] = defaultdict(list)
    for code in (*codes, "bad_request", "internal_error"):
        by_status[CODES[code].status].append(code)
    for status, names in by_status.items():
        specs[status] = ResponseSpec(
            Problem,
            generate_examples=False,
            media_type=PROBLEM_JSON,
            description="; ".join(f"`{name}`: {CODES[name].meaning}" for name in names),
            examples=[
                Example(summary=CODES[name].meaning, value=msgspec.to_builtins(problem(name)))
                for name in names
            ],
        )
    return specs
