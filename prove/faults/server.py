"""Faults of a database server under load. The checker judges the whole sale.

Sessions are ended, connections used up, snapshots kept open, memory and disks exhausted, and the
clock jumps.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

import psutil
import psycopg

from flashsale.dev.postgres import SUPERUSER_FILE
from prove.customers.http_sale import Size
from prove.faults.trial import Fault, trial
from prove.judge.end import nothing_is_left_over, the_database_agrees
from prove.judge.money import every_capture_is_settled_once, every_grant_has_its_payment_job
from prove.judge.orders import equal_keys_get_equal_answers as same_answers
from prove.judge.orders import every_hold_gets_its_window, what_was_acknowledged_exists
from prove.report import Row
from prove.stage.service import Service, ServiceInParts

LOAD = Size(customers=1000, per_second=80)
LONGER_LOAD = Size(customers=1600, per_second=80)  # the volume is full during half of LOAD
SNAPSHOT_SECONDS, SHORT_SNAPSHOT_SECONDS = 120.0, 15.0
FULL_SECONDS = 8.0
CLOCKLESS = (
    every_hold_gets_its_window,
    what_was_acknowledged_exists,
    same_answers,
    every_capture_is_settled_once,
    every_grant_has_its_payment_job,
    nothing_is_left_over,
    the_database_agrees,
)
"""What holds whatever the clock does: the other invariants compare instants."""


def proof(full: bool) -> list[Row]:
    """A sale for each fault, which occurs once or, in the full run, five times."""
    seconds = SNAPSHOT_SECONDS if full else SHORT_SNAPSHOT_SECONDS
    faults: dict[str, Fault] = {
        "backends terminated": _terminate,
        "connections used up": _use_up,
        f"snapshot kept {seconds:.0f} s, idle in transaction": partial(_keep_snapshot, seconds),
        "a backend killed (as the OOM killer does)": _kill_backend,
        "out of memory": _out_of_memory,
    }
    times = 5 if full else 1
    return [trial(name, LOAD, fault, times) for name, fault in faults.items()]


def disks(full: bool) -> list[Row]:
    """The volume of the data or of the WAL is filled to the last byte."""
    times = 5 if full else 1
    rows = []
    for name, folder in {"data volume full": "base", "WAL volume full": "pg_wal"}.items():
        if os.geteuid() or not shutil.which("mount"):
            rows.append(Row(name, skipped="only root mounts a tmpfs"))
            continue
        make = partial(SmallVolume, folder)
        rows.append(trial(name, LONGER_LOAD, SmallVolume.fill, times, make=make))
    return rows


def clock(full: bool) -> list[Row]:
    """The database's clock jumps forward and back by half a minute."""
    name = "clock stepped forth and back"
    libraries = list(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not libraries:
        return [Row(name, skipped="libfaketime is missing: apt-get install faketime")]
    make = partial(FakeTime, libraries[0])
    return [trial(name, LOAD, FakeTime.step, 5 if full else 1, make=make, only=CLOCKLESS)]


def _superuser(service: Service) -> psycopg.Connection[tuple[object, ...]]:
    password = (service.data_dir / SUPERUSER_FILE).read_text().strip()
    return psycopg.connect(
        service.database_url(),
        user="postgres",
        password=password,
        autocommit=True,
        connect_timeout=5,
    )


def _terminate(service: Service) -> int:
    """Ends all other sessions, every 100 ms for three seconds."""
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
    """Takes all connections. Holds must still expire, and operators must get in."""
    with _superuser(service) as conn, ExitStack() as taken:
        conn.execute("drop role if exists greedy")
        conn.execute("create role greedy login password 'greedy'")
        url = service.database_url().split("@", 1)[1]
        count = 0
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                greedy = psycopg.connect(f"postgresql://greedy:greedy@{url}", connect_timeout=5)
                taken.enter_context(greedy)
                count += 1
        conn.execute(  # so that the service has to connect anew
            "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'flashsale'"
        )
        time.sleep(1)
        before = service.sweeps()
        time.sleep(2)
        _superuser(service).close()
        return count if service.sweeps() > before and service.is_ready() else 0


def _keep_snapshot(seconds: float, service: Service) -> int:
    """Keeps a report's snapshot open, and a tool's transaction with an uncommitted reserve()."""
    with _superuser(service) as report, _superuser(service) as tool:
        report.execute("begin isolation level repeatable read")
        report.execute("select count(*) from flashsale_data.orders")
        tool.execute("begin")
        tool.execute("select * from flashsale.reserve(1, 'forgetful')")
        before = service.sweeps()
        time.sleep(seconds)
        tool.execute("rollback")
        return int(service.sweeps() > before and service.is_ready())


def _backends(service: Service) -> list[psutil.Process]:
    with _superuser(service) as conn:
        pids = conn.execute(
            "select pid from pg_stat_activity where usename = 'flashsale'"
            " and backend_type = 'client backend'"
        ).fetchall()
    return [psutil.Process(int(str(pid))) for (pid,) in pids]


def _kill_backend(service: Service) -> int:
    """Kills a backend. Postgres then ends all the others too, and recovers."""
    _backends(service)[0].send_signal(signal.SIGKILL)
    return 1


def _out_of_memory(service: Service) -> int:
    """Keeps the service's backends from allocating memory for three seconds."""
    backends = _backends(service)
    limited = sum(_limit(process, str(process.memory_info().vms)) for process in backends)
    time.sleep(3)
    for process in backends:
        _limit(process, "unlimited")
    return limited


def _limit(process: psutil.Process, size: str) -> bool:
    """Sets a limit as the process's user: in a container root may not set it for other users."""
    with contextlib.suppress(psutil.NoSuchProcess):
        command = ["prlimit", f"--pid={process.pid}", f"--as={size}:unlimited"]
        whose: dict[str, Any] = {}
        if not os.geteuid():
            whose = {"user": process.uids().real, "group": process.gids().real}
        return not subprocess.run(command, check=False, capture_output=True, **whose).returncode
    return False


class SmallVolume(Service):
    """A service with one folder of the cluster on a volume of 200 MB."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._volume = self.data_dir / "postgres" / folder

    def __enter__(self) -> Self:
        aside = self.data_dir / "aside"
        self._volume.rename(aside)
        self._volume.mkdir()
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", self._volume], check=True
        )
        shutil.copystat(aside, self._volume)
        owner = aside.stat()
        os.chown(self._volume, owner.st_uid, owner.st_gid)
        subprocess.run(["cp", "-a", f"{aside}/.", self._volume], check=True)
        super().__enter__()
        return self

    def _clean_up(self) -> None:
        subprocess.run(["umount", "--lazy", self._volume], check=False)
        super()._clean_up()

    def fill(self) -> int:
        """Fills the volume for some seconds. Returns how many attempts to write failed.

        The service need not say that it is not ready: it reaches its database, and can read.
        """
        filler, failed = self._volume / "filler", 0
        with filler.open("wb") as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 16))
                file.flush()
        deadline = time.monotonic() + FULL_SECONDS
        while time.monotonic() < deadline:
            try:
                with _superuser(self) as conn:
                    conn.execute("select pg_switch_wal()")  # or it goes unnoticed for long
                    conn.execute("create temp table probe as select generate_series(1, 10000)")
            except psycopg.Error:
                failed += 1
            time.sleep(0.2)
        filler.unlink()
        return failed


class FakeTime(ServiceInParts):
    """A service whose Postgres, and nothing else, has a fake clock, which a file sets."""

    def __init__(self, library: Path) -> None:
        super().__init__()
        self._file = self.data_dir / "clock"
        self._faked = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    def __enter__(self) -> Self:
        self._set("+0")
        super().__enter__()
        return self

    @contextmanager
    def clocked(self) -> Iterator[None]:
        os.environ.update(self._faked)
        try:
            yield
        finally:
            for name in self._faked:
                del os.environ[name]

    def _set(self, offset: str) -> None:
        draft = self._file.with_suffix(".new")
        draft.write_text(offset)
        draft.chmod(0o644)
        draft.rename(self._file)

    def step(self) -> int:
        """Sets the clock half a minute ahead, then back. Sweeps have to go on both times."""
        swept = 0
        for offset in ("+30", "-30", "+0"):
            self._set(offset)
            time.sleep(1)
            before = self.sweeps()
            time.sleep(2)
            swept += self.sweeps() > before
        return int(swept == 3)
