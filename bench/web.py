"""The service over HTTP: compared with an empty handler, on one item and many, and in open load.

There is one API process. The worker and the provider do not run, because opening payments is the
work of other processes, which run on another machine in production. Sides take turns on the same
database.
"""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from uuid import uuid4

import msgspec

from bench import sql
from bench.load import Answers, Result, Stream, load, request, reserve
from bench.report import HERE, BenchReport
from flashsale import signature
from flashsale.dev.postgres import EmbeddedPostgres
from flashsale.processes import free_port
from flashsale.testing.processes import environment, stop

SECRET = "a secret of the bench"
GRANTED = (200, 201, 202)
FASTEST = 60_000
"""Requests per second, more than any side can serve. So many are prepared for a closed load."""
OFFERED = (0.2, 0.5, 0.8, 1.0, 1.5, 2.0, 3.0)
OPEN_CONNECTIONS = 4_000
HOT = [1]
SPREAD = range(1, sql.ITEMS + 1)
MODEST = 50
"""Requests per second of each kind beside a storm."""


def run(report: BenchReport, seconds: float) -> None:
    with ExitStack() as stack:
        postgres = stack.enter_context(sql.server(report))
        sql.prepare(postgres)
        api = stack.enter_context(service(postgres))
        empty = stack.enter_context(process([sys.executable, "-m", "bench.empty"]))
        for commit, simulated in (("as the disk is", False), ("1 ms", True)):
            sql.commits(postgres, simulated=simulated)
            paths(report, api, empty, seconds, commit)
        sql.commits(postgres, simulated=False)
        capacity = open_load(report, api, seconds)
        neighbours(report, postgres, api, seconds, capacity)
        payments(report, postgres, api, seconds, capacity)


def paths(report: BenchReport, api: int, empty: int, seconds: float, commit: str) -> None:
    for connections in (64, 256):
        closed = partial(throughput, report, seconds=seconds, connections=connections)
        seen = report.take_turns(
            {
                "empty handler": partial(closed, empty, HOT),
                "reserve, hot": partial(closed, api, HOT),
                "reserve, spread": partial(closed, api, SPREAD),
                "sold out": partial(closed, api, [sql.SOLD_OUT], statuses=(409,)),
            }
        )
        report.raw[f"HTTP requests/s, {connections} connections, commit {commit}"] = seen
        start = f"HTTP, commit {commit}, {connections} connections: "
        report.ratio(
            f"{start}reserve, hot / empty handler",
            ">= 1.0",
            seen["reserve, hot"],
            seen["empty handler"],
        )
        report.ratio(
            f"{start}refusal sold out / empty handler",
            ">= 0.9",
            seen["sold out"],
            seen["empty handler"],
        )
        report.ratio(
            f"{start}reserve, hot / spread",
            ">= 0.95",
            seen["reserve, hot"],
            seen["reserve, spread"],
        )


def open_load(report: BenchReport, api: int, seconds: float) -> float:
    """Returns the capacity: the median of reserves per second in the closed model."""
    peaks = report.take_turns(
        {"closed": partial(throughput, report, api, HOT, seconds=seconds, connections=256)}
    )["closed"]
    capacity = sorted(peaks)[len(peaks) // 2]
    report.raw["HTTP capacity, reserves/s, 256 connections"] = capacity
    runs = report.take_turns(
        {f"{x:g}x": partial(offer, report, api, x * capacity, seconds) for x in OFFERED}
    )
    report.raw["HTTP open load, by offered load"] = {
        name: [_summary(r) for r in results] for name, results in runs.items()
    }
    half = [r.streams["reserve"] for r in runs["0.5x"]]
    report.figure(
        "HTTP, open load at half of capacity: p99 in ms",
        "<= 10",
        (a.worst("p99", *GRANTED) for a in half),
    )
    report.figure("the same: p99.9 in ms", "<= 25", (a.worst("p99.9", *GRANTED) for a in half))
    best = [max(_goodput(runs[name][n]) for name in runs) for n in range(report.rounds)]
    for name, goal in (("2x", ">= 0.9"), ("3x", "")):
        over = runs[name]
        answers = [r.streams["reserve"] for r in over]
        report.ratio(
            f"HTTP, goodput at {name} of capacity offered / peak",
            goal,
            [_goodput(r) for r in over],
            best,
        )
        report.figure(
            "the same: p99 of what is accepted, ms (aim: 50)",
            "",
            (a.worst("p99", *GRANTED) for a in answers),
        )
        report.figure(
            "the same: p99 of refusals, ms",
            "<= 50" if goal else "",
            (a.worst("p99", 503) for a in answers),
        )
        report.figure("the same: cores that the load generator took", "", (r.cores for r in over))
    return float(capacity)


def neighbours(
    report: BenchReport, postgres: EmbeddedPostgres, api: int, seconds: float, capacity: float
) -> None:
    """Streams on other items, while one item gets a storm, or all items share the same load."""
    storm = max(capacity - 3 * MODEST, MODEST)
    others = range(2, sql.ITEMS + 1)

    def beside(items: Iterable[int]) -> Result:
        streams = [
            Stream("storm", storm, OPEN_CONNECTIONS, reserve(items, _enough(storm, seconds))),
            Stream("reserve", MODEST, 200, reserve(others, _enough(MODEST, seconds))),
            Stream("read", MODEST, 200, _reads(others, _enough(MODEST, seconds))),
            Stream("pay", MODEST, 200, _payments(postgres, _enough(MODEST, seconds))),
        ]
        return _checked(report, load(api, seconds, *streams))

    seen = report.take_turns({"one": partial(beside, HOT), "all": partial(beside, SPREAD)})
    for kind in ("reserve", "read", "pay"):
        one, every = ([r.streams[kind].worst("p99", *GRANTED) for r in seen[s]] for s in seen)
        report.raw[f"p99 of {kind} beside a storm, ms"] = {"one item": one, "all items": every}
        report.ratio(
            f"HTTP, p99 of {kind} on other items: one item stormed at 1.0x / the same load spread",
            "<= 1.2",
            one,
            every,
        )


def payments(
    report: BenchReport, postgres: EmbeddedPostgres, api: int, seconds: float, capacity: float
) -> None:
    def storm() -> Result:
        rate = 3 * capacity
        return _checked(
            report,
            load(
                api,
                seconds,
                Stream("storm", rate, OPEN_CONNECTIONS, reserve(HOT, _enough(rate, seconds))),
                Stream("pay", MODEST, 200, _payments(postgres, _enough(MODEST, seconds))),
            ),
        )

    seen = [r.streams["pay"] for r in report.take_turns({"3x": storm})["3x"]]
    report.figure(
        "HTTP, payments accepted during a storm of 3x capacity: share",
        ">= 1.0",
        (a.count(200) / a.offered for a in seen),
    )
    report.figure(
        "the same: p99 in ms (bound: 10,000)", "<= 10,000", (a.worst("p99", 200) for a in seen)
    )


def throughput(
    report: BenchReport,
    port: int,
    items: Iterable[int],
    *,
    seconds: float,
    connections: int,
    statuses: tuple[int, ...] = GRANTED,
) -> float:
    """Requests with the wanted answer per second, in the closed model."""
    stream = Stream("reserve", 0, connections, reserve(items, int(FASTEST * seconds)))
    result = _checked(report, load(port, seconds, stream))
    answers = result.streams["reserve"]
    if set(answers.by_status) - set(statuses):
        report.broken.append(f"{set(answers.by_status)} where {statuses} was due")
    return round(answers.count(*statuses) / result.seconds)


def offer(report: BenchReport, port: int, rate: float, seconds: float) -> Result:
    requests = reserve(HOT, _enough(rate, seconds))
    return _checked(
        report, load(port, seconds, Stream("reserve", rate, OPEN_CONNECTIONS, requests))
    )


def _enough(rate: float, seconds: float) -> int:
    """Requests for a Poisson stream: ten standard deviations more than the mean."""
    mean = rate * seconds
    return int(mean + 10 * mean**0.5 + 10)


def _goodput(result: Result) -> float:
    return result.streams["reserve"].count(*GRANTED) / result.seconds


def _checked(report: BenchReport, result: Result) -> Result:
    for name, answers in result.streams.items():
        report.broken += [f"{name}: {odd}" for odd in answers.odd]
    return result


def _summary(result: Result) -> dict[str, Any]:
    answers: Answers = result.streams["reserve"]
    return {
        "answered": (answers.offered - answers.unanswered) / result.seconds,
        "goodput": _goodput(result),
        "unanswered": answers.unanswered,
        "generator_cores": result.cores,
        "sent_late_p99_ms": result.sent_late_ms["p99"],
        "by_status": answers.by_status,
    }


def _reads(items: Iterable[int], count: int) -> Iterator[bytes]:
    items = list(items)
    for n in range(count):
        yield request("GET", f"/items/{items[n % len(items)]}", "reader")


def _payments(postgres: EmbeddedPostgres, count: int) -> Iterator[bytes]:
    """The provider's events for orders that are made here."""
    run = uuid4().hex
    rows = sql.query(
        postgres,
        "select r.payment_id, r.amount from generate_series(0, %s / 500) b, lateral "
        "flashsale.reserve_many(array_fill(2, array[500]), (select array_agg(%s || b || '-' || n) "
        "from generate_series(1, 500) n)) r",
        count,
        run,
    )
    for payment_id, amount in rows:
        body = msgspec.json.encode(
            {
                "event_id": f"{run}-{payment_id}",
                "type": "payment.succeeded",
                "session_id": f"{run}-{payment_id}",
                "payment_id": str(payment_id),
                "amount": amount,
                "currency": "EUR",
                "occurred_at": "2026-01-01T00:00:00Z",
            }
        )
        signed = signature.sign(SECRET, body, int(time.time()))
        yield request(
            "POST",
            "/webhooks/payments",
            "x",
            body,
            f"Content-Type: application/json\r\nFlashsale-Signature: {signed}\r\n",
        )


@contextmanager
def service(postgres: EmbeddedPostgres, **settings: object) -> Iterator[int]:
    """Runs a replica of the API; gives its port."""
    ours = {"database_url": postgres.url(), "webhook_secret": SECRET}
    command = [sys.executable, "-m", "flashsale", "serve", "--port"]
    with process(command, **ours | settings) as port:
        yield port


@contextmanager
def process(command: list[str], *more: str, **settings: object) -> Iterator[int]:
    """Runs a program that listens on the port in its last argument; gives the port."""
    port = free_port()
    running = subprocess.Popen(
        [*command, f"{port}", *more],
        env=environment(**settings),
        cwd=HERE.parent,
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 30
        while not _listens(port):
            if running.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"bench: {' '.join(command)} does not start")
            time.sleep(0.05)
        yield port
    finally:
        stop(running)


def _listens(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health/live", timeout=1).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
