"""CPU time that a request for a unit costs in the API's process, without server and database.

Sides take turns; each round is 256 requests at once, several times. CPU time hardly depends on who
else uses the machine, so this tells what a change of a handler is worth where rates only jitter.

    .venv/bin/python -m bench.path
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import uvloop
from litestar import Litestar

from bench.empty import empty
from flashsale.api import examples
from flashsale.api.app import create_app
from flashsale.api.intake import Wish
from flashsale.models import Reservation
from flashsale.settings import Settings

REQUESTS, REPEATS, ROUNDS = 256, 8, 15


def service(outcome: str) -> Litestar:
    """The service, on a database that answers at once."""
    app = create_app(Settings(database_url="postgresql://nowhere", webhook_secret="x"))

    def answer(wish: Wish) -> Reservation:
        order = msgspec.structs.replace(
            examples.RESERVED, item_id=wish.item_id, customer_id=wish.customer_id
        )
        return Reservation(outcome, order if outcome == "reserved" else None, None)

    async def many(wishes: Sequence[Wish], _deadline: float) -> list[Reservation]:
        await asyncio.sleep(0)
        return [answer(wish) for wish in wishes]

    async def one(wish: Wish, deadline: float) -> Reservation:
        return (await many([wish], deadline))[0]

    gather = app.state.service.database._gather
    gather._one, gather._many, gather._read = one, many, lambda row: row
    return app


def scope(app: Litestar, n: int, body: bool) -> dict[str, Any]:
    headers = [(b"host", b"localhost:8000"), (b"x-customer-id", b"c%d" % n)]
    if body:
        headers += [(b"content-type", b"application/json"), (b"content-length", b"2")]
    path = "/items/7/orders"
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 1),
        "scheme": "http",
        "method": "POST",
        "root_path": "",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": headers,
        "state": {},
        "extensions": {},
    }


async def round_of(app: Litestar, status: int, body: bool) -> float:
    """Microseconds of CPU a request."""

    async def receive() -> Any:
        return {"type": "http.request", "body": b"{}" if body else b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            assert message["status"] == status, message

    began = time.process_time()
    for _ in range(REPEATS):
        await asyncio.gather(
            *(app(scope(app, n, body), receive, send) for n in range(REQUESTS))  # type: ignore[arg-type]
        )
    return (time.process_time() - began) / REPEATS / REQUESTS * 1e6


async def main() -> None:
    granted, refused, busy = service("reserved"), service("sold_out"), service("reserved")
    busy.state.service.database._gather.retry_after = lambda: 1
    sides = {
        "an empty Litestar handler": (Litestar([empty], logging_config=None), 201, False),
        "reserve": (granted, 201, False),
        "reserve, with a body": (granted, 201, True),
        "sold out": (refused, 409, False),
        "overloaded": (busy, 503, False),
    }
    seen: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ROUNDS + 1):  # the first warms up
        for name, side in sides.items():
            seen[name].append(await round_of(*side))
    for name, costs in seen.items():
        costs = costs[1:]
        print(f"{statistics.median(costs):7.1f} µs ({min(costs):.1f} to {max(costs):.1f})  {name}")


if __name__ == "__main__":
    uvloop.run(main())
