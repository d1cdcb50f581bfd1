"""Compares this tree with another commit: what a change costs or gains.

    python -m bench.against [--quick] [--rounds N] [--seconds S] COMMIT

Each side has its own database on one server, migrated by its own code, and an API process that runs
its own code. The sides take turns. Calls in SQL are measured by the CPU time of their session's
process, which hardly depends on other load of the machine, and the API by its rate. The commit is
checked out into a temporary folder. It runs with the packages that are installed here.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import psycopg

from bench import sql, web
from bench.__main__ import show
from bench.report import HERE, BenchReport
from flashsale.dev.postgres import EmbeddedPostgres
from flashsale.testing.processes import environment
from flashsale.testing.servers import postgres_server

CALLS = 3_000
SINGLE = {
    "reserve": "flashsale.reserve(1, 'r{run}-' || n)",
    "reserve, with a key": "flashsale.reserve(1, 'k{run}-' || n, 'k')",
    "reserve, joining the line": "flashsale.reserve(2, 'w{run}-' || n)",
    "reserve, sold out": "flashsale.reserve(3, 's{run}-' || n)",
    "reserve, asked again": "flashsale.reserve(1, 'r{run}-' || n)",
}
BATCHES = {100: 60, 256: 24}
"""Calls by the size of the batch."""


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("commit", help="what this tree is compared with")
    options.add_argument("--quick", action="store_true", help="see that it runs")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=float, default=2, help="of a side in a round, over HTTP")
    given = options.parse_args()
    report = BenchReport(1 if given.quick else given.rounds)
    began = time.monotonic()
    with ExitStack() as stack:
        trees = {"before": stack.enter_context(checkout(given.commit)), "after": HERE.parent}
        postgres = stack.enter_context(postgres_server(settings=sql.SETTINGS))
        urls = {side: database(postgres, side, tree) for side, tree in trees.items()}
        calls(report, urls, CALLS // 10 if given.quick else CALLS)
        ports = {side: stack.enter_context(api(tree, urls[side])) for side, tree in trees.items()}
        for connections in (64, 256):
            rates(report, ports, connections, 0.5 if given.quick else given.seconds)
        for url in urls.values():
            with psycopg.connect(url) as conn:
                broken = conn.execute("select * from flashsale.violation limit 3").fetchall()
                report.broken += [f"flashsale.violation: {row}" for row in broken]
    show(report, time.monotonic() - began)
    return 1 if report.broken else 0


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """A folder with the files of a commit."""
    with tempfile.TemporaryDirectory(prefix="flashsale-bench-") as folder:
        tree = Path(folder) / "tree"
        git = ["git", "-C", str(HERE.parent), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def database(postgres: EmbeddedPostgres, side: str, tree: Path) -> str:
    """The URL of a new database, migrated by the code of a tree, with three items in it.

    The first has units for everybody, the second a line for everybody, the third neither.
    """
    with psycopg.connect(postgres.url("postgres", "postgres"), autocommit=True) as conn:
        conn.execute(f"create database {side} owner flashsale".encode())
    url = postgres.url(side)
    subprocess.run(
        [sys.executable, "-m", "flashsale", "migrate"],
        env=environment(database_url=url) | {"PYTHONPATH": str(tree / "src")},
        cwd=tree,
        check=True,
    )
    with psycopg.connect(url, autocommit=True) as conn:
        for sku, stock, max_waiting in (("a", sql.STOCK, None), ("b", 0, None), ("c", 0, 0)):
            conn.execute(
                "select flashsale.create_item(%s, %s, 4900, 'EUR', %s, 600, "
                "p_max_waiting => %s::integer)",
                [sku, sku, stock, max_waiting],
            )
        conn.execute("vacuum analyze")
    return url


def calls(report: BenchReport, urls: dict[str, str], times: int) -> None:
    with ExitStack() as stack:
        sessions = {
            side: stack.enter_context(psycopg.connect(url, autocommit=True))
            for side, url in urls.items()
        }
        for session in sessions.values():
            session.execute("set synchronous_commit = off")
        work: dict[str, Callable[[psycopg.Connection, int], float]] = {
            name: partial(single, call, times) for name, call in SINGLE.items()
        }
        for size, count in BATCHES.items():
            work[f"reserve_many of {size}, an order"] = partial(batch, size, count)
        seen: dict[str, dict[str, list[float]]] = {name: {s: [] for s in urls} for name in work}
        for number in range(report.rounds + 1):  # the first warms up
            for name, measure in work.items():
                for side in list(sessions)[:: -1 if number % 2 else 1]:
                    seen[name][side].append(measure(sessions[side], number))
    for name, costs in seen.items():
        report.figure(f"SQL, CPU: {name}, µs, before", "", costs["before"][1:])
        report.ratio(
            f"SQL, CPU: {name}, after / before", "<= 1.03", costs["after"][1:], costs["before"][1:]
        )


def single(call: str, times: int, conn: psycopg.Connection, run: int) -> float:
    """µs of CPU per call, each in a transaction of its own; n is the number of the call."""
    loop = f"loop perform {call.format(run=run)}; commit; end loop"
    began = cpu_seconds(conn)
    conn.execute(f"do $d$ begin for n in 1..{times} {loop}; end $d$".encode())
    return (cpu_seconds(conn) - began) / times * 1e6


def batch(size: int, count: int, conn: psycopg.Connection, run: int) -> float:
    """µs of CPU per order."""
    began = cpu_seconds(conn)
    for n in range(count):
        conn.execute(
            f"select count(*) from flashsale.reserve_many(array_fill(1, array[{size}]), "
            f"(select array_agg('b{size}-{run}-{n}-' || i) from generate_series(1, {size}) i))"
            "".encode()
        )
    return (cpu_seconds(conn) - began) / count / size * 1e6


def cpu_seconds(conn: psycopg.Connection) -> float:
    """How long the session's process has run on a CPU."""
    return int(Path(f"/proc/{conn.info.backend_pid}/schedstat").read_text().split()[0]) / 1e9


@contextmanager
def api(tree: Path, url: str) -> Iterator[int]:
    """The API of a tree, on its own database; its port."""
    command = ["env", f"PYTHONPATH={tree / 'src'}", sys.executable, "-m", "flashsale", "serve"]
    with web.process([*command, "--port"], database_url=url, webhook_secret=web.SECRET) as port:
        yield port


def rates(report: BenchReport, ports: dict[str, int], connections: int, seconds: float) -> None:
    sides = {
        side: partial(
            web.throughput, report, port, web.HOT, seconds=seconds, connections=connections
        )
        for side, port in ports.items()
    }
    seen = report.take_turns(sides, report.rounds + 1)
    before, after = seen["before"][1:], seen["after"][1:]  # the first warms up
    report.figure(f"HTTP, {connections} connections: reserves per second, before", "", before)
    report.ratio(
        f"HTTP, {connections} connections: reserve, after / before", ">= 0.97", after, before
    )


if __name__ == "__main__":
    sys.exit(main())
