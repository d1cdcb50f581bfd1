"""What every request must fulfil before it is routed, so that it means one thing to everybody.

A gateway in front decides by path and header who may call what. If the service read a path or a
header in another way than the gateway, a customer could reach what is for staff. So whatever can be
read in two ways is refused here: a path in another than its only form, a header twice that may come
once, a body that is encoded. The express way accepts only requests that would pass here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from litestar import Request
from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPReceiveMessage, Message, Receive, Scope, Send

from flashsale.api.problems import answer
from flashsale.refusals import Refused

# Segments of unreserved characters (RFC 3986), none of them empty, "." or "..". Nothing in our
# paths ever needs percent-encoding.
_PATH = re.compile(rb"/|(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]+)+").fullmatch
# An item_id, however Python's int() would read it, that is not written in the only way: 01, 1_0.
_ODD_NUMBER = re.compile(rb"/items/(?!(?:0|-?[1-9][0-9]*)(?:/|$))[0-9_-]").match
_ONCE = frozenset(
    {
        b"host",
        b"content-type",
        b"content-length",
        b"content-encoding",
        b"transfer-encoding",
        b"x-customer-id",
        b"x-staff-id",
        b"idempotency-key",
        b"flashsale-signature",
        b"last-event-id",
    }
)
NO_STORE = (b"cache-control", b"private, no-store")


def around(app: ASGIApp) -> ASGIApp:
    """The app behind these checks. It answers HEAD like GET, and nothing may store its answers.

    An answer that may be stored says so with a Cache-Control of its own.
    """

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await app(scope, receive, send)
            return
        is_head = scope["method"] == "HEAD"

        async def plain(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message["headers"])
                if all(name.lower() != b"cache-control" for name, _ in headers):
                    message["headers"] = [*headers, NO_STORE]
            elif message["type"] == "http.response.body" and is_head:
                message["body"] = b""
            await send(message)

        if is_head:
            scope["method"] = "GET"
            receive = _nobody
        if wrong := _wrong(scope):
            response = answer(Request(scope), wrong)
            await response.to_asgi_response(None, Request(scope))(scope, receive, plain)
            return
        await app(scope, receive, plain)

    return checked


def raw_path(scope: Scope) -> bytes:
    """The path as it was sent, without the query."""
    return scope.get("raw_path") or scope["path"].encode()


def _wrong(scope: Scope) -> Refused | None:
    path = raw_path(scope)
    if not _PATH(path):
        return Refused(
            "bad_request",
            "The path is not in its only form.",
            hint="Send it without percent-encoding, empty or dot segments, and without a slash "
            "at its end.",
        )
    if _ODD_NUMBER(path):
        return Refused("unknown_item")
    headers: list[tuple[bytes, bytes]] = list(scope["headers"])
    if twice := repeated(headers):
        return Refused("bad_request", f"The header {twice.decode()} must come only once.")
    given = dict(headers)
    if not given.get(b"host") and scope["http_version"] == "1.1":
        return Refused("bad_request", "The header host is missing.")
    if given.get(b"content-encoding", b"identity").lower() != b"identity":
        return Refused(
            "unsupported_media_type",
            "The body must not be encoded.",
            hint="Send it without the header Content-Encoding.",
        )
    return None


def repeated(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The name of a header that comes more than once although it must not; None: there is none."""
    seen: set[bytes] = set()
    for name, _ in headers:
        if name in _ONCE:
            if name in seen:
                return name
            seen.add(name)
    return None


async def _nobody() -> HTTPReceiveMessage:
    """The client of a HEAD request: it waits for no body, so that a stream ends at once."""
    return {"type": "http.disconnect"}
