"""The simulated payment provider over HTTP: sessions, events to a webhook, and faults on demand."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any, Literal, TypeVar, cast

import msgspec
from litestar import Litestar, MediaType, Request, Response, Router, get, post, put
from litestar.exceptions import HTTPException
from litestar.types import ASGIApp
from msgspec import Meta, Struct
from msgspec.structs import replace

from flashsale.server import enter_process
from flashsale.settings import Settings, SettingsError
from flashsale.simulator.faults import FaultDice, Unreliable
from flashsale.simulator.ledger import LedgerError
from flashsale.simulator.messages import (
    CallRefused,
    Completion,
    Faults,
    NewSession,
    PaymentSession,
    ProviderProblem,
    RefundCall,
    SessionPage,
    VoidCall,
)
from flashsale.simulator.page import HEADERS, checkout_page, problem_page
from flashsale.simulator.sessions import SimulatedProvider

log = logging.getLogger("flashsale.provider")

T = TypeVar("T")
Connection = Request[Any, Any, Any]


class _Key(Struct, frozen=True):
    value: Annotated[str, Meta(min_length=1, max_length=255, pattern=r"^[ -~]+\Z")] | None


class _Page(Struct, frozen=True, forbid_unknown_fields=True):
    after: Annotated[int, Meta(ge=0, le=2**31)] = 0
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


def _provider(request: Connection) -> SimulatedProvider:
    return cast(SimulatedProvider, request.app.state.provider)


def _dice(request: Connection) -> FaultDice:
    return cast(FaultDice, request.app.state.dice)


def _session_id(request: Connection) -> str:
    return cast(str, request.path_params["session_id"])


def _key(request: Connection) -> str | None:
    return msgspec.convert({"value": request.headers.get("Idempotency-Key")}, _Key).value


async def _body(request: Connection, kind: type[T]) -> T:
    """The body as JSON, whatever its content type is, because `curl -d` declares a form."""
    return msgspec.json.decode(await request.body() or b"{}", type=kind)


@post("/sessions")
async def open_session(request: Connection) -> Response[PaymentSession]:
    """Opens a session; the same Idempotency-Key gets the same one."""
    new = await _body(request, NewSession)
    session, is_new = _provider(request).open(new, _key(request))
    await _provider(request).flush()
    return Response(session, status_code=201 if is_new else 200)


@post("/sessions/{session_id:str}/void", status_code=200)
async def void_session(request: Connection) -> PaymentSession:
    """Closes a session, so that no money can come."""
    await _body(request, VoidCall)
    session = _provider(request).void(_session_id(request), _key(request))
    await _provider(request).flush()
    return session


@post("/sessions/{session_id:str}/refund", status_code=200)
async def refund_session(request: Connection) -> PaymentSession:
    """Sends all the money of a session back."""
    wanted = await _body(request, RefundCall)
    session = _provider(request).refund(_session_id(request), wanted, _key(request))
    await _provider(request).flush()
    return session


@post("/sessions/{session_id:str}/complete", status_code=200)
async def complete_session(request: Connection) -> PaymentSession:
    """Ends a session as the customer's browser would: it succeeds or fails."""
    completion = await _body(request, Completion)
    session = _provider(request).complete(_session_id(request), completion.outcome)
    await _provider(request).flush()
    return session


@post("/sessions/{session_id:str}/pay", status_code=303)
async def pay_session(request: Connection) -> Response[None]:
    """Pays, from the checkout page, which then shows what happened."""
    return await _complete_by_form(request, "succeed")


@post("/sessions/{session_id:str}/decline", status_code=303)
async def decline_session(request: Connection) -> Response[None]:
    """Declines, from the checkout page, which then shows what happened."""
    return await _complete_by_form(request, "fail")


async def _complete_by_form(
    request: Connection, outcome: Literal["succeed", "fail"]
) -> Response[None]:
    session = _provider(request).get(_session_id(request))
    with suppress(CallRefused):  # it has ended in another way, and the page says so
        _provider(request).complete(session.session_id, outcome)
    await _provider(request).flush()
    location = f"../{session.session_id}"  # relative, whatever the address is in front of us
    return Response(None, status_code=303, headers={"Location": location})


@get("/sessions/{session_id:str}")
async def get_session(request: Connection) -> Response[PaymentSession] | Response[str]:
    """Shows a session, and how to pay it while it is open. In a browser it is a page."""
    session = _provider(request).get(_session_id(request))
    await _provider(request).flush()
    if _wants_page(request):
        return _page(checkout_page(session, datetime.now(UTC)))
    if session.status == "open":
        how = f"""curl -X POST {session.checkout_url}/complete -d '{{"outcome": "succeed"}}'"""
        session = replace(session, how_to_pay=how)
    return Response(session, headers={"Vary": "Accept"})


def _wants_page(request: Connection) -> bool:
    """Whether it is a browser that asks: it names text/html, and programs do not."""
    return "text/html" in request.headers.get("Accept", "").lower()


def _page(text: str, status_code: int = 200) -> Response[str]:
    return Response(text, media_type=MediaType.HTML, status_code=status_code, headers=HEADERS)


@get("/sessions")
async def list_sessions(request: Connection) -> SessionPage:
    """Lists the sessions, with totals over all of them."""
    wanted = msgspec.convert(dict(request.query_params), _Page, strict=False)
    page = _provider(request).page(wanted.after, wanted.limit)
    await _provider(request).flush()
    return page


@get("/faults")
async def get_faults(request: Connection) -> Faults:
    """Shows the faults in force."""
    return _dice(request).faults


@put("/faults")
async def put_faults(request: Connection) -> Faults:
    """Replaces all faults. Faults that are not named end, so `{}` ends all of them."""
    faults = await _body(request, Faults)
    _dice(request).change(faults)
    log.info("faults: %s", faults)
    return faults


@get("/health/live")
async def live() -> dict[str, str]:
    """Whether the process runs."""
    return {"status": "ok"}


@get("/health/ready")
async def ready(request: Connection) -> dict[str, str]:
    """Whether the ledger can be written."""
    await _provider(request).flush()
    return {"status": "ok"}


def _answer(request: Connection, error: Exception) -> Response[ProviderProblem] | Response[str]:
    match error:
        case CallRefused():
            refused = error
        case msgspec.ValidationError():
            refused = CallRefused(422, "bad_value", str(error))
        case msgspec.DecodeError() | UnicodeError() | RecursionError():
            refused = CallRefused(400, "malformed_body", "The body is not JSON in UTF-8.")
        case HTTPException() if error.status_code < 500:
            phrase = HTTPStatus(error.status_code).phrase
            refused = CallRefused(error.status_code, phrase.lower().replace(" ", "_"), phrase)
        case LedgerError():
            refused = CallRefused(503, "ledger_unavailable", "The ledger can't be written.")
        case _:
            log.error("unexpected error: path=%s", request.url.path, exc_info=error)
            refused = CallRefused(500, "internal_error", "It is in the log.")
    if _wants_page(request):
        return _page(
            problem_page(HTTPStatus(refused.status).phrase, refused.detail), refused.status
        )
    problem = ProviderProblem(
        type=f"urn:flashsale:problem:{refused.code}",
        title=HTTPStatus(refused.status).phrase,
        status=refused.status,
        code=refused.code,
        detail=refused.detail,
        session=refused.session,
    )
    return Response(problem, status_code=refused.status, media_type="application/problem+json")


def create_app(settings: Settings | None = None) -> Litestar:
    """The provider as an ASGI application, for one process.

    settings: None reads the environment. Errors: SettingsError; at startup LedgerError.
    """
    settings = settings or Settings.from_env()
    settings.need_webhook_secret()
    try:
        faults = msgspec.json.decode(settings.faults, type=Faults)
    except msgspec.DecodeError as error:
        raise SettingsError(f"FLASHSALE_FAULTS: {error}") from error
    dice = FaultDice(faults, settings.fault_seed)

    @asynccontextmanager
    async def run(app: Litestar) -> AsyncIterator[None]:
        provider = SimulatedProvider(settings, dice)
        app.state.update({"provider": provider, "dice": dice})
        try:
            yield
        finally:
            await provider.close()

    def unreliable(app: ASGIApp) -> ASGIApp:
        return Unreliable(app, dice)

    calls = Router(
        "/", route_handlers=[open_session, void_session, refund_session], middleware=[unreliable]
    )
    return Litestar(
        route_handlers=[
            calls,
            complete_session,
            pay_session,
            decline_session,
            get_session,
            list_sessions,
            get_faults,
            put_faults,
            live,
            ready,
        ],
        exception_handlers={Exception: _answer},
        lifespan=[run],
        request_max_body_size=settings.max_body_bytes,
        openapi_config=None,
        logging_config=None,
    )


def in_process() -> Litestar:
    """The application, made in granian's process for it."""
    enter_process()
    return create_app(Settings.from_env())
