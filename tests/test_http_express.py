"""The express way for requests for units gives the answers that Litestar's handler gives."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from typing import Any

import pytest

from flashsale.api import express
from http_support import (
    LocalApi,
    api_fixture,  # noqa: F401 - fixtures
    part,
    problem,
    serving,
    settings,
    told_to,
)

JSON = {"Content-Type": "application/json"}
OPEN: dict[str, Any] = {}
TERMS: dict[str, dict[str, Any]] = {
    "open": OPEN,
    "a line": {"stock": 0},
    "a full line": {"stock": 0, "max_waiting": 0},
    "not open": {"opens_at": "2900-01-01T00:00:00Z"},
    "closed": {"closes_at": "2001-01-01T00:00:00Z"},
}
REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "a key": {"headers": {"Idempotency-Key": "k"}},
    "a blank key": {"headers": {"Idempotency-Key": " "}},
    "a long key": {"headers": {"Idempotency-Key": "k" * 256}},
    "a body": {"json": {}},
    "null": {"content": "null", "headers": JSON},
    "no line": {"json": {"wait": False}},
    "a line": {"json": {"wait": True}},
    "chunks": {"chunks": [b'{"wait":', b" false}"]},
    "a bad chunk": {"chunks": [b"{", b"no JSON"]},
    "no chunk": {"chunks": []},
    "a bad wish": {"json": {"wait": 1}},
    "an unknown field": {"json": {"x": 1}},
    "half a body": {"content": "{", "headers": JSON},
    "no UTF-8": {"content": b'{"\xff"}', "headers": JSON},
    "a long body": {"content": b" " * 2000 + b"{}", "headers": JSON},
    "text": {"content": "{}", "headers": {"Content-Type": "text/plain"}},
    "a charset": {"content": "{}", "headers": {"Content-Type": "application/json;charset=utf-8"}},
    "no kind": {"content": "{}", "headers": {}},
    "no customer": {"customer": None},
    "a blank customer": {"customer": " "},
    "a long customer": {"customer": "x" * 129},
    "a tab": {"customer": "a\tb"},
    "no ASCII": {"customer": "ä".encode()},
    "two customers": {
        "customer": None,
        "headers": [("X-Customer-Id", "a"), ("X-Customer-Id", "b")],
    },
    "two keys": {
        "customer": None,
        "headers": [("X-Customer-Id", "a"), ("Idempotency-Key", "k"), ("Idempotency-Key", "l")],
    },
    "two kinds": {
        "customer": None,
        "content": "{}",
        "headers": [("X-Customer-Id", "b"), *(2 * [("Content-Type", "application/json")])],
    },
    "two ordinary headers": {
        "customer": None,
        "headers": [("X-Customer-Id", "c"), ("Via", "1.1 a"), ("Via", "1.1 b")],
    },
    "no host": {"headers": {"Host": ""}},
    "gzip": {"content": gzip.compress(b"{}"), "headers": JSON | {"Content-Encoding": "gzip"}},
    "not encoded": {"content": "{}", "headers": JSON | {"Content-Encoding": "identity"}},
    "another method": {"method": "PUT"},
}
PATHS = [
    "/items/01/orders",
    "//items/1/orders",
    "/items/1/orders/",
    "/items/1%2Forders",
    "/items/%31/orders",
    "/items/2147483647/orders",
    "/items/0/orders",
    "/items/x/orders",
    "/items/9999999999/orders",
]


async def chunks(parts: list[bytes]) -> AsyncIterator[bytes]:
    """A body of unknown length: httpx sends it with Transfer-Encoding: chunked."""
    for chunk in parts:
        yield chunk


def told(response: Any) -> Any:
    """The visible answer, without the parts that differ between requests."""
    body = response.json()
    for passing in ("item_id", "order_id", "created_at", "reserved_at", "expires_at", "payment"):
        if body.get(passing):
            body[passing] = type(body[passing])
    if body.get("forecast"):
        body["forecast"] |= {"as_of": "some time"}
    headers = dict(response.headers)
    for passing in ("content-length", "location"):
        if passing in headers:
            headers[passing] = "some"
    if int(headers.get("retry-after", 0)) > 100:
        headers["retry-after"] = "long"
    return response.status_code, headers, body


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"idempotency-key", b"k")],
        [(b"content-type", b"application/json"), (b"content-length", b"13")],
    ],
)
def test_a_well_formed_request_takes_the_express_way(headers: list[tuple[bytes, bytes]]) -> None:
    request, _ = express.unit_request(7, [(b"host", b"x"), (b"x-customer-id", b"ann"), *headers])
    assert request is not None and request[:2] == (7, "ann")


async def test_a_key_that_comes_twice_belongs_to_no_order(api: LocalApi) -> None:
    """Whichever of the two the service believed, a proxy might believe the other."""
    item = await api.item(stock=5)
    path = f"/items/{item['item_id']}/orders"
    for header in ("Idempotency-Key", "X-Customer-Id", "X-Staff-Id", "Content-Type"):
        headers = [("Idempotency-Key", "k"), ("X-Customer-Id", "ann"), ("X-Staff-Id", "s")]
        headers += [("Content-Type", "application/json"), (header, "application/json")]
        response = await api.client.post(path, headers=headers, content="{}")
        assert header.lower() in problem(response, 400, "bad_request")["detail"]
    assert (await api("GET", "/orders", "ann")).json() == []


async def test_a_body_in_chunks_is_read(api: LocalApi) -> None:
    item = await api.item(stock=0)
    refused = await api.order(item, "ann", content=chunks([b'{"wait": false}']), headers=JSON)
    problem(refused, 409, "sold_out")
    refused = await api.order(item, "ann", content=chunks([b"no JSON"]), headers=JSON)
    problem(refused, 400, "malformed_body")
    assert (await api("GET", "/orders", "ann")).json() == []


async def test_over_http_2_a_body_needs_no_header_that_announces_it(api: LocalApi) -> None:
    """`flashsale serve` does not speak HTTP/2, but other servers for ASGI applications do."""
    item = await api.item(stock=0)
    path = f"/items/{item['item_id']}/orders".encode()
    for body, status in ((b'{"wait": false}', 409), (b"no JSON", 400), (b"", 202)):
        answer = await told_to(api.app, path, [part(body, more=False)], version="2")
        assert answer.status == status


@pytest.mark.parametrize("announced", [(b"content-length", b"15"), (b"transfer-encoding", b"x")])
async def test_a_client_that_goes_away_within_its_body_has_asked_for_nothing(
    api: LocalApi, announced: tuple[bytes, bytes]
) -> None:
    """What has come so far may be complete by chance, and mean something else than the whole."""
    item = await api.item()
    path = f"/items/{item['item_id']}/orders".encode()
    gone = {"type": "http.disconnect"}
    for begun in (b"{}", b"null", b""):
        answer = await told_to(api.app, path, [part(begun, more=True), gone], announced)
        assert answer.status == 400
    assert (await api("GET", "/orders", "ann")).json() == []


async def test_overload_is_refused_before_anything_else_and_says_when_to_ask_again(
    api: LocalApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = await api.item()
    with monkeypatch.context() as busy:
        busy.setattr(api.app.state.service.intake, "retry_after", lambda: 7)
        for customer in ("ann", " "):
            refused = await api.order(item, customer)
            problem(refused, 503, "overloaded")
            assert refused.headers["retry-after"] == "7"
            assert refused.json()["hint"]
        assert (await api("GET", f"/items/{item['item_id']}")).status_code == 200
    assert (await api.order(item, "ann")).status_code == 201


async def test_a_body_that_never_comes_is_given_up(database_url: str) -> None:
    async with serving(settings(database_url, request_deadline_seconds=0.2)) as api:
        item = await api.item()

        async def slow() -> Any:
            yield b"{"
            await asyncio.sleep(60)

        response = await api.order(
            item, "ann", content=slow(), headers=JSON | {"Content-Length": "2"}
        )
        problem(response, 408, "body_timeout")


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
async def test_both_ways_give_the_same_answer(
    database_url: str, monkeypatch: pytest.MonkeyPatch, terms: dict[str, Any]
) -> None:
    answers: list[dict[str, Any]] = []
    express_way = express.unit_request
    for way in (express_way, lambda *_: (None, False)):
        monkeypatch.setattr(express, "unit_request", way)
        async with serving(settings(database_url)) as api:
            item = await api.item(sku=f"shoe {len(answers)}", **{"stock": 5, **terms})
            answers.append(seen := {})
            for name, request in REQUESTS.items():
                given = {"method": "POST", "customer": f"c {name}"} | request
                method, customer = given.pop("method"), given.pop("customer")
                if "chunks" in given:
                    given |= {"content": chunks(given.pop("chunks")), "headers": JSON}
                if isinstance(given.get("headers"), list) or customer is None:
                    response = await api.client.request(
                        method, f"/items/{item['item_id']}/orders", **given
                    )
                else:
                    response = await api(
                        method, f"/items/{item['item_id']}/orders", customer, **given
                    )
                seen[name] = told(response)
            for path in PATHS:
                seen[path] = told(await api("POST", path, "ann"))
            seen["again"] = told(await api.order(item, "c plain"))
    for name, answer in answers[0].items():
        assert answer == answers[1][name], name
