"""The express way: well-formed requests for units bypass the framework, as plain ASGI.

Litestar's routing, dependencies, validation and responses take several times as long as all the
rest of a reservation (docs/explanation/performance.md). A request that is in any way unusual goes
to Litestar's handler, which knows all the rules. A test checks that both give the same answers.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache

import msgspec
from litestar import Request
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from flashsale.api.parts import ServiceParts
from flashsale.api.problems import PROBLEM_JSON, answer, refused
from flashsale.api.unit_answers import GRANTED, asked_for, refusal
from flashsale.api.wellformed import NO_STORE, raw_path, repeated
from flashsale.models import UnitRequest, UnitRequestBody
from flashsale.refusals import Overloaded, Refused

ROUTE = "/items/{item_id}/orders"
_PATH = re.compile(rb"/items/([1-9][0-9]{0,8})/orders").fullmatch
_CUSTOMER = re.compile(rb"[!-~](?:[ -~]{0,126}[!-~])?").fullmatch
_KEY = re.compile(rb"[!-~](?:[ -~]{0,253}[!-~])?").fullmatch
_SMALL = re.compile(rb"[0-9]{1,3}").fullmatch  # a Content-Length that is short enough
_JSON = b"application/json"
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(UnitRequestBody | None).decode


def around(app: ASGIApp, service: ServiceParts) -> ASGIApp:
    """The app, with the express way in front of it."""
    intake, metrics = service.intake, service.metrics
    body_seconds = service.settings.request_deadline_seconds

    async def express(scope: Scope, receive: Receive, send: Send) -> None:
        path = _path(scope)
        if path is None:
            await app(scope, receive, send)
            return
        began = time.perf_counter()
        # This check comes first, because the time that a refusal takes is lost for other requests.
        if (seconds := intake.retry_after()) is not None:
            start, body = _overloaded(seconds)
            metrics.observe("POST", ROUTE, 503, time.perf_counter() - began)
            await send(start)
            await send(body)
            return
        request, has_body = unit_request(int(path[1]), list(scope["headers"]))
        if request is None:
            await app(scope, receive, send)
            return
        try:
            if has_body:
                request = asked_for(request, _decode(await _body(receive, body_seconds)))
            unit = await intake.reserve(request)
            metrics.reserved(unit.outcome)
            if unit.order is None:
                raise refusal(unit)
            status = GRANTED[unit.outcome]
            content = _encode(unit.order)
            fields = [
                (b"content-type", _JSON),
                NO_STORE,
                (b"location", b"/orders/" + unit.order.order_id.encode()),
            ]
        except Refused as error:
            status, fields, content = _refused(error)
        except Exception as error:
            scope["path_template"] = ROUTE
            response = answer(Request(scope), error)
            status, content = response.status_code or 500, _encode(response.content)
            fields = _fields(response.headers)
        metrics.observe("POST", ROUTE, status, time.perf_counter() - began)
        fields = [*fields, (b"content-length", b"%d" % len(content))]
        await send({"type": "http.response.start", "status": status, "headers": fields})
        await send({"type": "http.response.body", "body": content, "more_body": False})

    return express


@lru_cache(maxsize=256)
def _overloaded(retry_seconds: int) -> tuple[Message, Message]:
    """The 503 answer, ready to be sent."""
    status, fields, content = _refused(Overloaded(retry_seconds))
    fields = [*fields, (b"content-length", b"%d" % len(content))]
    return (
        {"type": "http.response.start", "status": status, "headers": fields},
        {"type": "http.response.body", "body": content, "more_body": False},
    )


def _refused(error: Refused) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body. They are cached: in a storm nearly all refusals are alike."""
    return _problem(error.code, error.detail, error.hint, error.retry_seconds, error.order_id)


@lru_cache(maxsize=256)
def _problem(
    code: str, detail: str, hint: str | None, retry_seconds: int | None, order_id: str | None
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    said, headers = refused(
        Refused(code, detail, hint=hint, retry_seconds=retry_seconds, order_id=order_id)
    )
    return said.status, _fields(headers), _encode(said)


def _fields(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    fields = [(b"content-type", PROBLEM_JSON.encode()), NO_STORE]
    return fields + [(name.lower().encode(), value.encode()) for name, value in headers.items()]


def _path(scope: Scope) -> re.Match[bytes] | None:
    if scope["type"] != ScopeType.HTTP or scope["method"] != "POST":
        return None
    if scope["query_string"]:  # there is no parameter that this call knows
        return None
    if scope["http_version"] != "1.1":  # in HTTP/2 a body needs no header that announces it
        return None
    return _PATH(raw_path(scope))


def unit_request(
    item_id: int, headers: Sequence[tuple[bytes, bytes]]
) -> tuple[UnitRequest | None, bool]:
    """The request in the headers, and whether it has a body. None: Litestar has to handle it."""
    given = dict(headers)
    if len(given) != len(headers) and repeated(headers):
        return None, False
    customer = given.get(b"x-customer-id")
    key = given.get(b"idempotency-key")
    length = given.get(b"content-length", b"0")
    if (
        not given.get(b"host")
        or customer is None
        or not _CUSTOMER(customer)
        or (key is not None and not _KEY(key))
        or not _SMALL(length)
        or given.get(b"content-type", _JSON) != _JSON
        or b"transfer-encoding" in given
        or b"content-encoding" in given
    ):
        return None, False
    request = UnitRequest(item_id, customer.decode(), None if key is None else key.decode())
    return request, length != b"0"


async def _body(receive: Receive, seconds: float) -> bytes:
    body, more = b"", True
    try:
        async with asyncio.timeout(seconds):
            while more:
                message = await receive()
                if message["type"] != "http.request":  # the client went away
                    raise Refused("malformed_body", "The body ended early.")
                body += message["body"]
                more = message["more_body"]
    except TimeoutError as error:
        raise Refused("body_timeout") from error
    return body
