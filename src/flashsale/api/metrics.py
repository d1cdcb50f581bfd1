"""What Prometheus sees. One registry an app; a request costs one cached child's observe().

The middleware is plain ASGI around the whole app, so that addresses that don't exist count too:
Litestar's own costs 60 % more CPU a request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from flashsale.api.streams import Watcher
from flashsale.database.calls import Database, Gauges
from flashsale.settings import Settings

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class Metrics:
    def __init__(self, database: Database, watcher: Watcher, settings: Settings) -> None:
        self._database = database
        self._timeout_seconds = settings.readiness_timeout_seconds
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._requests = Histogram(
            "flashsale_http_request_seconds",
            "Requests by route and status, and how long they took; streams: until they began",
            ("method", "route", "status"),
            buckets=BUCKETS,
            registry=self._registry,
        )
        self._requests_by: dict[tuple[str, str, int], Histogram] = {}
        self._outcomes = Counter(
            "flashsale_reserve_outcomes",
            "Requests for a unit by outcome, in this process",
            ("outcome",),
            registry=self._registry,
        )
        self._events = Counter(
            "flashsale_payment_events",
            "Events of the payment provider by outcome, in this process",
            ("outcome",),
            registry=self._registry,
        )
        self._outcomes_by: dict[str, Counter] = {}
        self._gauges = _Gauges(database, watcher)
        self._registry.register(self._gauges)

    def reserved(self, outcome: str) -> None:
        counter = self._outcomes_by.get(outcome)
        if counter is None:
            counter = self._outcomes_by[outcome] = self._outcomes.labels(outcome)
        counter.inc()

    def event_recorded(self, outcome: str) -> None:
        self._events.labels(outcome).inc()

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        key = (method, route, status)
        child = self._requests_by.get(key)
        if child is None:
            child = self._requests_by[key] = self._requests.labels(method, route, str(status))
        child.observe(seconds)

    async def scrape(self) -> bytes:
        """Everything in the text format; without the database, what the process itself knows."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                self._gauges.latest = await self._database.gauges()
        except Exception:
            self._gauges.latest = None
        return generate_latest(self._registry)

    def around(self, app: ASGIApp) -> ASGIApp:
        """The app, measured."""
        known = {"GET", "POST", "PATCH", "DELETE", "PUT", "HEAD", "OPTIONS"}

        async def measured(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != ScopeType.HTTP:  # websockets have no address here
                await app(scope, receive, send)
                return
            began = time.perf_counter()

            async def note(message: Message) -> None:
                if message["type"] == "http.response.start":
                    method = scope["method"] if scope["method"] in known else "other"
                    route: str = scope.get("path_template") or "unmatched"
                    self.observe(method, route, int(message["status"]), time.perf_counter() - began)
                await send(message)

            await app(scope, receive, note)

        return measured


class _Gauges(Collector):
    """States, asked for when they are scraped."""

    def __init__(self, database: Database, watcher: Watcher) -> None:
        self.latest: Gauges | None = None
        self._database = database
        self._watcher = watcher

    def collect(self) -> Iterable[Metric]:
        size = _gauge("pool_connections", "Connections to the database", label="pool")
        idle = _gauge("pool_idle", "Connections that nobody uses", label="pool")
        waiting = _gauge("pool_waiting", "Requests that wait for a connection", label="pool")
        for name, use in self._database.use.items():
            size.add_metric((name,), use.size)
            idle.add_metric((name,), use.idle)
            waiting.add_metric((name,), use.waiting)
        yield from (size, idle, waiting)
        yield _gauge("event_streams", "Open streams of order events", self._watcher.streams)
        yield _gauge("database_up", "Whether the database answered", int(self.latest is not None))
        if self.latest is None:
            return
        lags = dict(self.latest.sweeps)
        if lags:
            yield _gauge("sweep_lag_seconds", "Since the last sweep", min(lags.values()))
        lag = _gauge("sweeper_lag_seconds", "Since the last sweep of this kind", label="sweeper")
        for sweeper, seconds in lags.items():
            lag.add_metric((sweeper,), seconds)
        orders = _gauge("orders", "Orders over all items, up to a second old", label="status")
        for status, count in self.latest.orders:
            orders.add_metric((status,), count)
        depth = _gauge("queue_depth", "Jobs that wait for the worker", label="queue")
        age = _gauge("queue_oldest_seconds", "Age of the oldest job", label="queue")
        dead = _gauge("dead_letters", "Jobs that were given up", label="queue")
        for queue, jobs, oldest_age_seconds, given_up in self.latest.queues:
            depth.add_metric((queue,), jobs)
            age.add_metric((queue,), oldest_age_seconds)
            dead.add_metric((queue,), given_up)
        yield from (lag, orders, depth, age, dead)


def _gauge(
    name: str, documentation: str, value: float | None = None, *, label: str | None = None
) -> Any:
    return GaugeMetricFamily(
        f"flashsale_{name}", documentation, value=value, labels=[label] if label else None
    )
