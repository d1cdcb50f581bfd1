"""Reads requests: decodes their bodies strictly, and checks the signature of webhooks."""

from __future__ import annotations

import asyncio
import time
from functools import cache
from typing import Any

import msgspec
from litestar import Request
from litestar.connection import ASGIConnection
from litestar.exceptions import InternalServerException
from litestar.handlers import BaseRouteHandler

from flashsale import signature
from flashsale.refusals import Refused
from flashsale.settings import Settings


class JsonRequest(Request[Any, Any, Any]):
    """A request whose body is decoded once, strictly, into the type that its handler takes.

    Litestar's own decoding is lenient: it accepts the text "5" as the number 5.
    """

    async def body(self) -> bytes:
        """The body. Errors: Refused, if it does not arrive in time or ends early."""
        settings: Settings = self.app.state.service.settings
        try:
            async with asyncio.timeout(settings.request_deadline_seconds):
                return await super().body()
        except TimeoutError as error:
            raise Refused("body_timeout") from error
        except InternalServerException as error:  # the client went away
            raise Refused("malformed_body", "The body ended early.") from error

    async def json(self) -> Any:
        """The body, decoded. Errors: Refused for another content type; those of msgspec."""
        kind = (self.headers.get("content-type") or "application/json").partition(";")[0].strip()
        if kind.lower() != "application/json":
            raise Refused(
                "unsupported_media_type",
                hint="Send the header Content-Type: application/json.",
            )
        wanted = self.route_handler.parsed_fn_signature.parameters["data"].annotation
        return _decoder(wanted).decode(await self.body())


async def signed(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """A guard that refuses a request without a valid signature before its body is decoded."""
    assert isinstance(connection, Request)
    settings: Settings = connection.app.state.service.settings
    try:
        signature.verify(
            settings.webhook_secret,
            connection.headers.get(signature.HEADER),
            await connection.body(),
            time.time(),
            settings.webhook_tolerance_seconds,
        )
    except signature.BadSignature as error:
        raise Refused("bad_signature", str(error)) from error


@cache
def _decoder(wanted: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(wanted)
