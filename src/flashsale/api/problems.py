"""Every answer of the API that is not a success: a problem (RFC 9457), made in one place.

Business errors come from SQL with their own code (`constraint`), message and hint, and a status by
the class of their SQLSTATE.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

import asyncpg
import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException

from flashsale.database.sqlstates import meaning
from flashsale.models import Check, Problem
from flashsale.refusals import CODES, RETRY_SECONDS, Refused, Unavailable

log = logging.getLogger("flashsale.api")

PROBLEM_JSON = "application/problem+json"

_HTTP_CODES = {
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "unsupported_media_type",
}
_UNKNOWN = {"item_id": "unknown_item", "order_id": "unknown_order"}
_WRONG_ADDRESS = ("not_found", "method_not_allowed")


def answer(request: Request[Any, Any, Any], error: Exception) -> Response[Problem]:
    """Turns an error into a problem. An unexpected one is logged, and its details are not shown."""
    explained = _explain(request, error)
    if explained.status == 500:
        log.error(
            "unexpected error: method=%s path=%s error=%s",
            request.method,
            request.scope.get("path_template", "-"),
            type(error).__name__,
            exc_info=error,
        )
    return Response(
        problem(
            explained.code,
            explained.detail,
            status=explained.status,
            hint=explained.hint,
            order_id=explained.order_id,
            item_id=explained.item_id,
            checks=explained.checks,
        ),
        status_code=explained.status,
        media_type=PROBLEM_JSON,
        headers=explained.headers,
    )


def refused(error: Refused) -> tuple[Problem, dict[str, str]]:
    """A refusal as a problem, and the headers that go with it."""
    said = problem(
        error.code, error.detail, hint=error.hint, order_id=error.order_id, checks=error.checks
    )
    seconds = error.retry_seconds or (RETRY_SECONDS if said.status == 503 else None)
    return said, {"Retry-After": str(seconds)} if seconds else {}


def problem(
    code: str,
    detail: str = "",
    *,
    status: int | None = None,
    hint: str | None = None,
    order_id: str | None = None,
    item_id: int | None = None,
    checks: list[Check] | None = None,
) -> Problem:
    """A problem with this code; the defaults are those of CODES."""
    known = CODES.get(code)
    status = status or (known.status if known else 500)
    return Problem(
        type=f"urn:flashsale:problem:{code}",
        title=known.meaning if known else HTTPStatus(status).phrase,
        status=status,
        code=code,
        detail=detail or (known.meaning + "." if known else HTTPStatus(status).phrase),
        hint=hint,
        order_id=order_id,
        item_id=item_id,
        checks=checks or [],
    )


class _Explained(NamedTuple):
    status: int
    code: str
    detail: str = ""
    hint: str | None = None
    headers: Mapping[str, str] | None = None
    order_id: str | None = None
    checks: list[Check] | None = None
    item_id: int | None = None


def _explain(request: Request[Any, Any, Any], error: Exception) -> _Explained:
    match error:
        case Refused():
            return _explain_refusal(error)
        case asyncpg.PostgresError():
            return _explain_sqlstate(error)
        case asyncpg.InterfaceError() | OSError() | asyncio.TimeoutError():
            return _explain_refusal(Unavailable())
        case msgspec.ValidationError():
            return _Explained(422, "bad_value", str(error))
        case msgspec.DecodeError() | UnicodeError() | RecursionError():
            return _Explained(400, "malformed_body", "The body is not valid JSON in UTF-8.")
        case ValidationException():
            return _explain_validation(request, error)
        case HTTPException():
            return _explain_http(error)
    return _Explained(500, "internal_error")


def _explain_refusal(error: Refused) -> _Explained:
    said, headers = refused(error)
    return _Explained(
        said.status, said.code, said.detail, said.hint, headers or None, said.order_id, said.checks
    )


def _explain_sqlstate(error: asyncpg.PostgresError) -> _Explained:
    found = meaning(error)
    if found is None:
        return _Explained(500, "internal_error")
    headers = {"Retry-After": str(RETRY_SECONDS)} if found.status == 503 else None
    return _Explained(
        found.status, found.code, found.detail, found.hint, headers, item_id=found.item_id
    )


def _explain_validation(request: Request[Any, Any, Any], error: ValidationException) -> _Explained:
    """Litestar refused an argument of a handler: the path, a header, the query or the body."""
    wrong: list[Any] = error.extra if isinstance(error.extra, list) else []
    if any(w.get("key") == "customer" for w in wrong) or (
        not wrong and "x-customer-id" not in request.headers
    ):
        return _Explained(401, "customer_required")
    for w in wrong:
        if w.get("source") == "path":
            return _Explained(404, _UNKNOWN[w["key"]])
    # A missing body shows as a KeyError, even beside other errors and when the body is optional.
    said = [f"{w['key']}: {w['message']}" for w in wrong if w["message"] != repr(w["key"])]
    return _Explained(422, "bad_value", "; ".join(said) or "A JSON body is required.")


def _explain_http(error: HTTPException) -> _Explained:
    if error.status_code >= 500:
        return _Explained(500, "internal_error")
    code = _HTTP_CODES.get(error.status_code, "bad_request")
    hint = "GET /schema describes all calls." if code in _WRONG_ADDRESS else None
    return _Explained(CODES[code].status, code, hint=hint, headers=error.headers)
