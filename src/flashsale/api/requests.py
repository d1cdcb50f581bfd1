"""Reads requests: decodes their bodies strictly; the provider's events are read by its plug-in."""

from __future__ import annotations

import asyncio
import hashlib
from functools import cache
from typing import Any

import msgspec
from litestar import Request
from litestar.connection import ASGIConnection
from litestar.exceptions import InternalServerException
from litestar.handlers import BaseRouteHandler
from msgspec.structs import replace

from flashsale.models import PaymentEvent
from flashsale.providers.interface import BadSignature, ProviderRefused, ProviderUnavailable
from flashsale.refusals import Refused
from flashsale.settings import Settings

_EVENT = "event"
"""Where a request keeps the event that the provider's plug-in has read in it."""


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
        if (event := self.scope["state"].get(_EVENT)) is not None:
            return event
        kind = (self.headers.get("content-type") or "application/json").partition(";")[0].strip()
        if kind.lower() != "application/json":
            raise Refused(
                "unsupported_media_type",
                hint="Send the header Content-Type: application/json.",
            )
        wanted = self.route_handler.parsed_fn_signature.parameters["data"].annotation
        return _decoder(wanted).decode(await self.body())


async def from_provider(
    connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler
) -> None:
    """A guard that lets the provider's plug-in read the event, and refuses all others' requests.

    An event without an id gets one that is made of its body, so that it is stored once.
    """
    assert isinstance(connection, Request)
    settings: Settings = connection.app.state.service.settings
    body = await connection.body()
    try:
        async with asyncio.timeout(settings.provider_timeout_seconds):
            event: PaymentEvent = await connection.app.state.provider.read_event(
                dict(connection.headers), body
            )
    except BadSignature as error:
        raise Refused("bad_signature", str(error)) from error
    except (ProviderUnavailable, ProviderRefused, TimeoutError) as error:
        raise Refused("provider_unavailable") from error
    if event.event_id is None:
        event = replace(event, event_id=hashlib.sha256(body).hexdigest())
    connection.scope["state"][_EVENT] = event


def as_text(body: bytes) -> str:
    """A body as Postgres can store it: what is not UTF-8, and NUL, becomes U+FFFD."""
    return body.decode("utf-8", "replace").replace("\0", "\ufffd")


@cache
def _decoder(wanted: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(wanted)
