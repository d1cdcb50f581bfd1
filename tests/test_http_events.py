"""Streams of an order's events, through a real server, because they must end when it stops."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import msgspec
import pytest

from flashsale.processes import free_port
from flashsale.testing.processes import stop
from http_support import NEW_ITEM, SECRET, Api, success
from support import Connection, sweep


@contextmanager
def serving(database_url: str, **env: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "flashsale", "serve", "--port", str(port)),
        ],
        env=os.environ
        | {
            "FLASHSALE_DATABASE_URL": database_url,
            "FLASHSALE_WEBHOOK_SECRET": SECRET,
            "FLASHSALE_SSE_POLL_SECONDS": "0.05",
        }
        | env,
    )
    try:
        for _ in range(200):
            try:
                httpx.get(f"{url}/health/live")
                break
            except httpx.TransportError:
                time.sleep(0.05)
        yield process, url
    finally:
        stop(process)


@asynccontextmanager
async def server(database_url: str, **env: str) -> AsyncIterator[tuple[Any, Api]]:
    with serving(database_url, **env) as (process, url):
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            yield process, Api(client)


@asynccontextmanager
async def events(
    api: Api, order: dict[str, Any], last: str | None = None
) -> AsyncIterator[AsyncIterator[dict[str, str]]]:
    """The stream as a client reads it: one dict per event; comments are {"": …}.

    last: the id of the event that the client has heard last.
    """
    path = f"/orders/{order['order_id']}/events"
    headers = {"X-Customer-Id": order["customer_id"]} | ({"Last-Event-ID": last} if last else {})
    async with api.client.stream("GET", path, headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "private, no-store"

        async def parsed() -> AsyncIterator[dict[str, str]]:
            event: dict[str, str] = {}
            async for line in response.aiter_lines():
                if not line:
                    if event:
                        yield event
                    event = {}
                else:
                    name, _, text = line.partition(":")
                    event[name] = text.strip()

        yield parsed()


def order_in(event: dict[str, str]) -> dict[str, Any]:
    assert event["event"] == "order" and event["id"]
    return msgspec.json.decode(event["data"])  # type: ignore[no-any-return]


async def event(stream: AsyncIterator[dict[str, str]]) -> dict[str, str]:
    """The next event; comments and reconnection hints are skipped."""
    async with asyncio.timeout(30):
        while True:
            found = await anext(stream)
            if "data" in found:
                return found


async def following(stream: AsyncIterator[dict[str, str]]) -> dict[str, Any]:
    """The next event's order."""
    return order_in(await event(stream))


async def ended(stream: AsyncIterator[dict[str, str]]) -> None:
    async with asyncio.timeout(30):
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def streams(api: Api) -> float:
    for line in (await api("GET", "/metrics")).text.splitlines():
        if line.startswith("flashsale_event_streams "):
            return float(line.split()[1])
    raise AssertionError


async def test_a_stream_shows_every_change_until_the_end(database_url: str, db: Connection) -> None:
    async with server(database_url) as (_, api):
        item = await api.item()
        first, second, third = [(await api.order(item, c)).json() for c in ("ann", "bob", "cat")]
        async with events(api, first) as a, events(api, third) as c:
            assert await following(a) == first
            seen = await following(c)
            assert seen["forecast"]["chance"] >= 0
            assert seen | {"forecast": None} == third, "a request's own answer has no forecast"
            assert third["position"] == 2

            await api("DELETE", f"/orders/{second['order_id']}", "bob")
            await api("DELETE", f"/orders/{first['order_id']}", "ann")
            assert (await following(a))["status"] == "cancelled"
            await ended(a)

            await asyncio.to_thread(sweep, db)
            seen = await following(c)
            while seen["status"] == "waiting":
                assert seen["position"] == 1  # a change of place is a change
                seen = await following(c)
            assert seen["status"] == "reserved" and seen["payment"]["status"] == "requested"

            assert (await api.event(success(seen))).json() == {"outcome": "paid"}
            seen = await following(c)
            assert seen["status"] == "paid" and seen["payment"]["status"] == "succeeded"
            await ended(c)
        async with events(api, third) as again:
            assert await following(again) == seen
            await ended(again)


async def test_a_browser_that_comes_back_after_the_end_is_told_not_to(
    database_url: str, db: Connection
) -> None:
    """An EventSource reconnects with the id of the last event, until it is answered 204."""
    async with server(database_url) as (_, api):
        order = (await api.order(await api.item(), "ann")).json()
        path = f"/orders/{order['order_id']}/events"

        async def again(last: str, method: str = "GET", customer: str = "ann") -> httpx.Response:
            return await api(method, path, customer, headers={"Last-Event-ID": last})

        async with events(api, order) as stream:
            first = await event(stream)
            assert first["id"].startswith("reserved-")
            await api("DELETE", path.removesuffix("/events"), "ann")
            last = await event(stream)
            assert last["id"].startswith("cancelled-")
            await ended(stream)
        done = await again(last["id"])
        assert (done.status_code, done.content) == (204, b"")
        assert done.headers["cache-control"] == "private, no-store"
        assert (await again(last["id"], "HEAD")).status_code == 204
        assert (await again(last["id"], customer="bob")).status_code == 404
        for other in (first["id"], "", "x", "cancelled-00000000"):
            heard = await again(other)
            assert heard.status_code == 200 and last["id"] in heard.text


async def test_a_browser_that_comes_back_before_the_end_hears_the_order_again(
    database_url: str,
) -> None:
    async with server(database_url) as (_, api):
        order = (await api.order(await api.item(), "ann")).json()
        async with events(api, order) as stream:
            heard = await event(stream)
        async with events(api, order, last=heard["id"]) as stream:
            assert order_in(await event(stream))["status"] == "reserved"
        head = await api("HEAD", f"/orders/{order['order_id']}/events", "ann")
        assert (head.status_code, head.content) == (200, b"")


async def test_a_stream_is_not_an_idle_connection(database_url: str) -> None:
    env = {"FLASHSALE_IDLE_CONNECTION_SECONDS": "1", "FLASHSALE_SSE_HEARTBEAT_SECONDS": "1.5"}
    async with server(database_url, **env) as (_, api):
        order = (await api.order(await api.item(), "ann")).json()
        async with events(api, order) as stream:
            await following(stream)
            async with asyncio.timeout(30):
                for _ in range(2):
                    assert await anext(stream) == {"": ""}


async def test_a_closed_stream_is_forgotten_and_a_silent_one_has_a_heartbeat(
    database_url: str,
) -> None:
    async with server(database_url, FLASHSALE_SSE_HEARTBEAT_SECONDS="0.1") as (_, api):
        order = (await api.order(await api.item(), "ann")).json()
        async with events(api, order) as one, events(api, order) as two:
            await following(one)
            await following(two)
            assert await streams(api) == 2
            async with asyncio.timeout(30):
                assert await anext(one) == {"": ""}
                assert await anext(one) == {"": ""}
        for _ in range(100):
            if await streams(api) == 0:
                break
            await asyncio.sleep(0.05)
        assert await streams(api) == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_streams_end_when_the_server_is_stopped(
    database_url: str, signum: signal.Signals
) -> None:
    async with server(database_url, FLASHSALE_SHUTDOWN_SECONDS="100") as (process, api):
        order = (await api.order(await api.item(), "ann")).json()
        async with events(api, order) as one, events(api, order) as two:
            await following(one)
            await following(two)
            process.send_signal(signum)
            await ended(one)
            await ended(two)
        await asyncio.to_thread(process.wait, 60)  # it did not have to be killed
        assert process.returncode == 0


async def test_the_server_starts_before_its_database(database_url: str) -> None:
    async with server("postgresql://nobody@127.0.0.1:1/nothing") as (_, api):
        assert (await api("GET", "/health/live")).status_code == 200
        assert (await api("GET", "/health/ready")).status_code == 503
        assert (await api("POST", "/items", json=NEW_ITEM)).status_code == 503
