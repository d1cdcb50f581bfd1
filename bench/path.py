"""The CPU time per request for a unit in the API's process, without server and database.

The sides take turns. Each round is 256 requests at once, several times. CPU time hardly depends on
other load of the machine, so this shows effects of a change that are too small to be seen in rates.

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
from flashsale.api.intake import Intake
from flashsale.models import UnitAnswer, UnitRequest
from flashsale.settings import Settings

REQUESTS, REPEATS, ROUNDS = 256, 8, 15
SETTINGS = Settings(database_url="postgresql://nowhere", webhook_secret="x")


class InstantCalls:
    """A database that answers every request for a unit at once, with the same outcome."""

    def __init__(self, outcome: str) -> None:
        self.outcome = outcome

    async def reserve(self, request: UnitRequest, deadline: float) -> UnitAnswer:
        return (await self.reserve_many([request], deadline))[0]

    async def reserve_many(
        self, requests: Sequence[UnitRequest], deadline: float
    ) -> list[UnitAnswer]:
        await asyncio.sleep(0)
        return [self._answer(request) for request in requests]

    async def find_held(self, requests: Sequence[UnitRequest], deadline: float) -> list[bool]:
        return [False for _ in requests]

    def unit_answer(self, row: UnitAnswer) -> UnitAnswer:
        return row

    def _answer(self, request: UnitRequest) -> UnitAnswer:
        if self.outcome != "reserved":
            return UnitAnswer(self.outcome, None, None)
        order = msgspec.structs.replace(
            examples.RESERVED, item_id=request.item_id, customer_id=request.customer_id
        )
        return UnitAnswer(self.outcome, order, None)


class BusyIntake(Intake):
    """An intake whose queue is too long to admit another request."""

    def retry_after(self) -> int | None:
        return 1


def service(outcome: str, kind: type[Intake] = Intake) -> Litestar:
    """The service, on a database that answers at once."""
    return create_app(SETTINGS, kind(InstantCalls(outcome), SETTINGS))


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
    """Microseconds of CPU per request."""

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
    """Measures every side, and prints the median of the rounds."""
    sides = {
        "an empty Litestar handler": (Litestar([empty], logging_config=None), 201, False),
        "reserve": (service("reserved"), 201, False),
        "reserve, with a body": (service("reserved"), 201, True),
        "sold out": (service("sold_out"), 409, False),
        "overloaded": (service("reserved", BusyIntake), 503, False),
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
