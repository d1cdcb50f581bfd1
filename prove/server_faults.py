"""What befalls a database server: sessions ended, connections used up, snapshots kept, memory and
disks exhausted, a clock that jumps. Each strikes under load; the checker judges the whole sale."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import psycopg

from prove.load import Size
from prove.report import Row
from prove.service import Service
from prove.storm import Fault, trial

LOAD = Size(customers=1200, per_second=80)
SNAPSHOT_SECONDS = 30.0


def proof(full: bool) -> list[Row]:
    """Each fault once, or five times, and a sale around it."""
    faults: dict[str, Fault] = {
        "backends terminated": _terminate,
        "connections used up": _use_up,
        f"snapshot kept {SNAPSHOT_SECONDS:.0f} s": _keep_snapshot,
        "a backend killed (OOM)": _kill_backend,
    }
    times = 5 if full else 1
    return [trial(name, LOAD, fault, times) for name, fault in faults.items()]


def _superuser(service: Service) -> psycopg.Connection[tuple[object, ...]]:
    url = service.database_url().replace("//flashsale:", "//postgres:")
    return psycopg.connect(url, autocommit=True)


def _terminate(service: Service) -> int:
    """All sessions but ours, every 100 ms for three seconds."""
    ended = 0
    with _superuser(service) as conn:
        for _ in range(30):
            ended += conn.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where pid <> pg_backend_pid() and backend_type = 'client backend'"
            ).rowcount
            time.sleep(0.1)
    return ended


def _use_up(service: Service) -> int:
    """Somebody else takes every connection there is: expiry goes on, and operators get in."""
    with _superuser(service) as conn, ExitStack() as taken:
        conn.execute("drop role if exists greedy")
        conn.execute("create role greedy login password 'greedy'")
        url = service.database_url().split("@", 1)[1]
        count = 0
        try:
            while True:
                taken.enter_context(
                    psycopg.connect(f"postgresql://greedy:greedy@{url}", connect_timeout=5)
                )
                count += 1
        except psycopg.OperationalError:
            pass
        before = service.last_swept()
        time.sleep(2)
        _superuser(service).close()  # an operator gets in
        if service.last_swept() <= before:
            return 0  # expiry stood still
    return count
