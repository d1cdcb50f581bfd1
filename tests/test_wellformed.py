"""A request that can be read in two ways is refused before it is routed."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest
from litestar import Litestar

from flashsale.api import express
from flashsale.models import Problem
from http_support import Answer, part, serving, settings, told_to

NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"


@pytest.fixture
async def app() -> AsyncIterator[Litestar]:
    """The service without a database: what is let in is answered 503."""
    async with serving(settings(NOWHERE)) as api:
        yield api.app


def code(answer: Answer) -> str:
    return msgspec.json.decode(answer.body, type=Problem).code


LET_IN = [b"/items/1/orders", b"/items/2147483647/orders", b"/orders/1/payment"]
REFUSED = [
    b"/items/1%2Forders",
    b"/items/%31/orders",
    b"/items/1/%6Frders",
    b"//items/1/orders",
    b"/items//1/orders",
    b"/items/1/orders/",
    b"/items/./1/orders",
    b"/orders/../items/1/orders",
    b"/orders/%2e%2e/items/1/orders",
    b"/items/+1/orders",
    b"/items/1/orders;x=1",
    b"/items\\1/orders",
    b"/items/%201/orders",
    b"/items/%D9%A1/orders",
    b"/items/1%00/orders",
    b"items/1/orders",
    b"*",
    b"/orders/%31/payment",
]
NO_ITEM = [b"/items/01/orders", b"/items/0_1/orders", b"/items/1_0/orders", b"/items/-01/orders"]


@pytest.mark.parametrize("path", LET_IN)
async def test_a_path_in_its_only_form_is_let_in(app: Litestar, path: bytes) -> None:
    assert (await told_to(app, path)).status == 503


@pytest.mark.parametrize("path", REFUSED)
async def test_a_path_in_another_form_is_refused(app: Litestar, path: bytes) -> None:
    answer = await told_to(app, path)
    assert (answer.status, code(answer)) == (400, "bad_request")
    assert answer.headers[b"cache-control"] == b"private, no-store"


@pytest.mark.parametrize("path", NO_ITEM)
async def test_a_number_in_another_form_is_no_item(app: Litestar, path: bytes) -> None:
    for asked in (path, path.removesuffix(b"/orders")):
        answer = await told_to(app, asked, method="GET" if asked != path else "POST")
        assert (answer.status, code(answer)) == (404, "unknown_item")


ONCE = [b"x-customer-id", b"x-staff-id", b"idempotency-key", b"host", b"content-type"]
ONCE += [b"content-encoding", b"flashsale-signature", b"last-event-id"]


@pytest.mark.parametrize("path", [b"/items/1/orders", b"/orders/1/payment", b"/items"])
@pytest.mark.parametrize("name", ONCE)
async def test_a_header_that_may_come_once_is_refused_twice(
    app: Litestar, path: bytes, name: bytes
) -> None:
    header = (name, b"application/json" if name == b"content-type" else b"identity")
    answer = await told_to(app, path, (), header, header)
    assert (answer.status, code(answer)) == (400, "bad_request")
    assert name in answer.body


async def test_other_headers_may_come_twice(app: Litestar) -> None:
    via = (b"via", b"1.1 proxy")
    assert (await told_to(app, b"/items/1/orders", (), via, via)).status == 503


async def test_a_request_has_a_host(app: Litestar) -> None:
    for path in LET_IN:
        for host in (None, b""):
            answer = await told_to(app, path, host=host)
            assert (answer.status, code(answer)) == (400, "bad_request")
        assert (await told_to(app, path, version="1", host=b"")).status == 503


@pytest.mark.parametrize("encoding", [b"gzip", b"br", b"identity, gzip", b""])
async def test_an_encoded_body_is_refused(app: Litestar, encoding: bytes) -> None:
    for path in (b"/items/1/orders", b"/items"):
        body = part(b"{}", more=False)
        headers = ((b"content-length", b"2"), (b"content-encoding", encoding))
        answer = await told_to(app, path, [body], *headers)
        assert (answer.status, code(answer)) == (415, "unsupported_media_type")
        assert b"Content-Encoding" in answer.body


async def test_head_is_answered_without_a_body(app: Litestar) -> None:
    """A client would drop the body by itself, so this looks at what the server is given."""
    for path, status in ((b"/health/live", 200), (b"/health/ready", 503), (b"/items/01", 404)):
        answer = await told_to(app, path, method="HEAD")
        assert (answer.status, answer.body) == (status, b"")
        assert int(answer.headers[b"content-length"]) > 0


def test_the_express_way_lets_in_no_more() -> None:
    customer = [(b"host", b"x"), (b"x-customer-id", b"ann")]
    assert express.unit_request(7, customer)[0]
    for name in ONCE:
        assert express.unit_request(7, [*customer, (name, b"x"), (name, b"x")]) == (None, False)
    assert express.unit_request(7, customer[1:]) == (None, False)
    assert express.unit_request(7, [*customer, (b"content-encoding", b"gzip")]) == (None, False)
