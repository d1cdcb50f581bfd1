"""Rival (d): Fastify, ioredis and a Lua script over HTTP; and the script alone against batches."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from bench import sql, web
from bench.report import HERE, BenchReport
from flashsale.processes import free_port
from flashsale.testing.processes import stop

NODE = HERE / "rivals" / "node"
POLICIES = ("always", "everysec")
OURS = "flashsale"
NEEDS = {
    "redis-server": "apt install redis-server",
    "redis-benchmark": "apt install redis-tools",
    "node": "apt install nodejs npm",
    "npm": "apt install npm",
}


def run(report: BenchReport, seconds: float) -> None:
    missing = [hint for name, hint in NEEDS.items() if not shutil.which(name)]
    if missing:
        report.skip(f"the Redis rival needs: {', '.join(missing)}")
        return
    subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--silent"],
        cwd=NODE,
        check=True,
    )
    with ExitStack() as stack:
        postgres = stack.enter_context(sql.server(report))
        sql.prepare(postgres)
        api = stack.enter_context(web.service(postgres))
        closed = partial(web.throughput, report, seconds=seconds, connections=256)
        web_sides = {OURS: partial(closed, api, web.HOT)}
        lua_sides = {OURS: partial(sql.pgbench, postgres, sql.batch(256), 2, seconds, 256)}
        for policy in POLICIES:
            redis = stack.enter_context(server(policy))
            node = stack.enter_context(web.process(["node", str(NODE / "server.js")], f"{redis}"))
            web_sides[policy] = partial(closed, node, web.HOT)
            lua_sides[policy] = partial(pipelined, redis, seconds)
        for commit, simulated in (("as the disk is", False), ("1 ms", True)):
            sql.commits(postgres, simulated=simulated)
            for what, compared in (
                (f"HTTP, commit {commit}, 256 connections: reserve / Fastify + Redis", web_sides),
                (
                    f"SQL, commit {commit}, batches of 256, 2 connections / Lua script pipelined "
                    "16 deep",
                    lua_sides,
                ),
            ):
                seen = report.take_turns(compared)
                report.raw[f"orders/s: {what}"] = seen
                for policy, goal in zip(POLICIES, (">= 1.0", ""), strict=True):
                    report.ratio(f"{what}, AOF {policy}", goal, seen[OURS], seen[policy])


@contextmanager
def server(policy: str) -> Iterator[int]:
    """The port of a Redis that writes each command to its append-only file."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="flashsale-bench-") as folder:
        running = subprocess.Popen(
            [
                *("redis-server", "--port", f"{port}", "--dir", folder, "--save", ""),
                *("--appendonly", "yes", "--appendfsync", policy, "--loglevel", "warning"),
                *("--auto-aof-rewrite-percentage", "0"),
            ],
            stdout=subprocess.DEVNULL,
        )
        try:
            for _ in range(100):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            _cli(
                port,
                "HSET",
                "item:1",
                "stock",
                f"{sql.STOCK}",
                "hold_ms",
                "600000",
                "price",
                "1000",
            )
            yield port
        finally:
            stop(running)


def pipelined(port: int, seconds: float) -> float:
    """Orders per second by the script alone, on 2 connections with 16 requests in flight each.

    Customers are random below 2^31, the most that redis-benchmark can count to.
    """
    sha = _cli(port, "SCRIPT", "LOAD", (NODE / "reserve.lua").read_text())
    count = 20_000
    while True:  # as many as fill the time
        said = subprocess.run(
            [
                *("redis-benchmark", "-p", f"{port}", "-c", "2", "-P", "16", "-n", f"{count}"),
                *("-r", "2000000000", "--csv", "EVALSHA", sha, "4"),
                *("item:1", "orders:1", "line:1", "holds:1", "c__rand_int__", f"{_now_ms()}"),
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        rates = re.findall(r'","([\d.]+)"', said)
        rate = float(rates[0])
        if count >= rate * seconds / 2:
            return round(rate)
        count = int(rate * seconds)


def _cli(port: int, *arguments: str) -> str:
    return subprocess.run(
        ["redis-cli", "-p", f"{port}", *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


def _now_ms() -> int:
    return int(time.time() * 1000)
