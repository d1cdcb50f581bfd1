"""Runs load.c: compiles it, writes the requests for it, and reads its results."""

from __future__ import annotations

import atexit
import itertools
import json
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from bench.report import HERE

_serial = map("{}-{}".format, itertools.repeat(uuid4().hex[:8]), itertools.count())


class Stream(NamedTuple):
    """Requests of one kind. rate: per second, Poisson; 0: each connection repeats at once."""

    name: str
    rate: float
    connections: int
    requests: Iterable[bytes]


class Answers(NamedTuple):
    """The answers to a stream. Latencies are in ms, from the time when a request was due."""

    offered: int
    unanswered: int
    by_status: dict[int, dict[str, float]]

    def count(self, *statuses: int) -> int:
        return int(sum(self.by_status[s]["count"] for s in statuses if s in self.by_status))

    def worst(self, percentile: str, *statuses: int) -> float:
        """The percentile of the slowest of these statuses; 0 if there were none."""
        return max(
            (self.by_status[s][percentile] for s in statuses if s in self.by_status), default=0.0
        )

    @property
    def odd(self) -> list[str]:
        """Results that no load may cause: no answer, a broken connection, a 5xx but no refusal."""
        found = [f"{self.unanswered} unanswered"] if self.unanswered else []
        for status, seen in self.by_status.items():
            if status == 0 or (status >= 500 and status != 503):
                found.append(f"{seen['count']:.0f} times status {status}")
        return found


class Result(NamedTuple):
    """The answers, and how the load generator itself performed."""

    seconds: float
    """Until the last answer, so longer than asked for where a queue was left at the end."""
    cores: float
    """What share of a core the generator took."""
    sent_late_ms: dict[str, float]
    streams: dict[str, Answers]


def load(port: int, seconds: float, *streams: Stream) -> Result:
    """Runs the load. Errors: CalledProcessError if a stream has too few requests for the time."""
    with ExitStack() as stack:
        arguments = []
        for s in streams:
            file = stack.enter_context(tempfile.NamedTemporaryFile(prefix="flashsale-bench-"))
            for request in s.requests:
                file.write(struct.pack("=I", len(request)))
                file.write(request)
            file.flush()
            arguments.append(f"{s.name}:{s.rate}:{s.connections}:{file.name}")
        command = [program(), "127.0.0.1", f"{port}", f"{seconds}", *arguments]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return Result(
        found["seconds"],
        found["cores"],
        found["sent_late_ms"],
        {
            name: Answers(
                s["offered"], s["unanswered"], {int(k): v for k, v in s["by_status"].items()}
            )
            for name, s in found["streams"].items()
        },
    )


def reserve(item_ids: Iterable[int], count: int) -> Iterable[bytes]:
    """Requests for units, each by another customer."""
    run = next(_serial)
    for n, item_id in zip(range(count), itertools.cycle(item_ids), strict=False):
        yield request("POST", f"/items/{item_id}/orders", f"{run}-{n}")


def request(method: str, path: str, customer: str, body: bytes = b"", headers: str = "") -> bytes:
    length = f"Content-Length: {len(body)}\r\n" if body or method == "POST" else ""
    return (
        f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nX-Customer-Id: {customer}\r\n"
        f"{headers}{length}\r\n"
    ).encode() + body


@cache
def program() -> str:
    """The path of load.c, compiled into a folder that is removed when this process ends."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise SystemExit("bench: no C compiler (cc); on Debian: apt install gcc libc6-dev")
    folder = tempfile.mkdtemp(prefix="flashsale-bench-")
    atexit.register(shutil.rmtree, folder)
    built = Path(folder) / "load"
    subprocess.run([compiler, "-O2", "-std=gnu11", "-o", built, HERE / "load.c", "-lm"], check=True)
    return str(built)
