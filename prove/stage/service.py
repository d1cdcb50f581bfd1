"""The service as an operator runs it: started, watched, killed, and restarted."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import psutil
import psycopg

from flashsale.database.migrate import migrate
from flashsale.dev.postgres import EmbeddedPostgres
from flashsale.processes import free_port
from flashsale.testing.processes import environment, is_ready, stop
from flashsale.testing.servers import cluster_folder
from prove.stage.proxy import Proxy

STARTS_WITHIN_SECONDS = 60.0
UNFINISHED = """
select 'payment jobs', count(*) from pgmq.q_payments
union all
select 'notifications', count(*) from pgmq.q_notifications
union all
select o.status::text || ' orders', count(*) from flashsale_data.orders o
where o.status in ('waiting', 'reserved', 'settling') group by o.status
union all
select p.status::text || ' payments', count(*) from flashsale_data.payments p
where p.status in ('requested', 'open', 'refund_due') group by p.status
union all
select 'units to pass on', count(*) from flashsale_data.orders o
join flashsale_data.items i using (item_id)
where o.ended_at is not null and not o.recycled and o.ticket <= i.now_serving
union all
select 'items with unknown tickets', count(*) from flashsale_data.items i
where i.settled < least(i.now_serving, flashsale.issued_tickets(i.item_id))
"""


class Service:
    """`flashsale dev` in a folder of its own. Use as a context manager.

    A watcher checks its readiness as a load balancer does. An outage is when it is not ready.
    """

    def __init__(self, **settings: Any) -> None:
        self._folder = ExitStack()
        self.data_dir = self._folder.enter_context(cluster_folder())
        self.port, self.provider_port = free_port(), free_port()
        self.api_url = f"http://127.0.0.1:{self.port}"
        self.provider_url = f"http://127.0.0.1:{self.provider_port}"
        self.ledger = self.data_dir / "provider-ledger.jsonl"
        self.outages: list[tuple[float, float]] = []
        """From, to in Unix time, as seen from outside."""
        self.provider_outages: list[tuple[float, float]] = []
        self._settings = settings
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._watching = threading.Event()
        self._watcher = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait_until_ready(STARTS_WITHIN_SECONDS)
        except BaseException:
            self._stop()
            self._clean_up()
            raise
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._watching.set()
        self._watcher.join()
        self._stop()
        self._clean_up()

    def start(self) -> None:
        self._start(
            *("dev", "--data-dir", str(self.data_dir)),
            *("--port", str(self.port), "--provider-port", str(self.provider_port)),
        )

    def _start(self, part: str, *flags: str, **settings: object) -> None:
        with (self.data_dir / f"{part}.out").open("ab") as log:
            self._processes[part] = subprocess.Popen(
                [sys.executable, "-m", "flashsale", part, *flags],
                env=environment(**self._settings | settings),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def database_url(self) -> str:
        """The URL of the database, as the owner of the tables."""
        return (self.data_dir / "database.url").read_text().strip()

    def unfinished(self) -> dict[str, int]:
        """The amounts of work that is due, queued or under way, by name; empty if there is none."""
        with psycopg.connect(self.database_url()) as conn:
            counts = conn.execute(UNFINISHED).fetchall()
        with urllib.request.urlopen(f"{self.provider_url}/sessions?limit=1", timeout=5) as answer:
            events = json.load(answer)["totals"]["undelivered_events"]
        return {what: n for what, n in [*counts, ("undelivered events", events)] if n}

    def set_faults(self, **faults: Any) -> None:
        """Replaces the faults of the provider by these."""
        body = json.dumps(faults).encode()
        request = urllib.request.Request(f"{self.provider_url}/faults", body, method="PUT")
        with urllib.request.urlopen(request, timeout=10):
            pass

    def is_ready(self) -> bool:
        return is_ready(self.api_url)

    def sweeps(self) -> int:
        """How many sweeps there have been; -1 if the database does not answer."""
        try:
            with psycopg.connect(self.database_url(), connect_timeout=2) as conn:
                row = conn.execute("select sum(sweeps) from flashsale_data.sweepers").fetchone()
        except psycopg.Error:
            return -1
        return int(row[0] or 0) if row else 0

    def wait_until_it_works(self, timeout_seconds: float) -> float:
        """Waits until it is ready and has swept. Returns the seconds. Errors: TimeoutError."""
        began = time.monotonic()
        self.wait_until_ready(timeout_seconds)
        before = self.sweeps()
        while self.sweeps() <= max(0, before):
            if time.monotonic() > began + timeout_seconds:
                raise TimeoutError(f"nobody swept for {timeout_seconds:g} s")
            time.sleep(0.05)
        return time.monotonic() - began

    def wait_until_ready(self, timeout_seconds: float) -> float:
        """Waits until it is ready. Returns the seconds. Errors: TimeoutError."""
        began = time.monotonic()
        while not (self.is_ready() and is_ready(self.provider_url)):
            if time.monotonic() > began + timeout_seconds:
                logs = [path.read_text(errors="replace") for path in self.data_dir.glob("*.out")]
                said = "\n".join(log[-2000:] for log in logs)
                raise TimeoutError(f"not ready within {timeout_seconds:g} s:\n{said}")
            self.keep_up()
            time.sleep(0.02)
        return time.monotonic() - began

    def keep_up(self) -> None:
        """Restarts parts that have ended, as an init system does."""
        if any(process.poll() is not None for process in self._processes.values()):
            self.start()

    def kill(self, part: str) -> int:
        """kill -9: `postgres` with all its children, `serve`, `worker`, or `all` there is.

        Returns the number of processes killed.
        """
        killed = 0
        for process in self._family():
            try:
                if part == "all" or _is(part, process):
                    process.send_signal(signal.SIGKILL)
                    killed += 1
            except psutil.Error:
                continue
        return killed

    def _family(self) -> list[psutil.Process]:
        family = []
        for process in self._processes.values():
            try:
                parent = psutil.Process(process.pid)
                family += [parent, *parent.children(recursive=True)]
            except psutil.NoSuchProcess:
                continue
        return family

    def _watch(self) -> None:
        down_since = None
        while not self._watching.wait(0.05):
            now = time.time()
            self.keep_up()
            if self.is_ready():
                if down_since is not None:
                    self.outages.append((down_since - 0.1, time.time()))
                down_since = None
            elif down_since is None:
                down_since = now

    def _stop(self) -> None:
        for process in reversed(self._processes.values()):
            with contextlib.suppress(TimeoutError):  # a fault may have left it stuck
                stop(process)
        self._processes.clear()

    def _clean_up(self) -> None:
        self._folder.close()


class ServiceInParts(Service):
    """The same parts started one by one, with proxies between them.

    api_wire, worker_wire: to Postgres. provider_wire: from the worker to the provider.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with self.clocked():
            postgres = self._stack.enter_context(EmbeddedPostgres(self.data_dir))
        self._url = postgres.url()
        migrate(self._url)
        self.api_wire = self._stack.enter_context(Proxy(postgres.port))
        self.worker_wire = self._stack.enter_context(Proxy(postgres.port))
        self.provider_wire = self._stack.enter_context(Proxy(self.provider_port))
        super().__enter__()
        return self

    @contextmanager
    def clocked(self) -> Iterator[None]:
        """A context in which Postgres starts. A subclass uses it to give Postgres another clock."""
        yield

    @property
    def wires(self) -> tuple[Proxy, ...]:
        return self.api_wire, self.worker_wire, self.provider_wire

    def database_url(self) -> str:
        return self._url

    def start(self) -> None:
        common: dict[str, object] = {
            "webhook_secret": "for-proof",
            "webhook_url": f"{self.api_url}/webhooks/payments",
        }
        common |= {"provider_port": self.provider_port, "port": self.port}
        parts: dict[str, dict[str, object]] = {
            "provider": {"provider_url": self.provider_url, "provider_ledger": self.ledger},
            "worker": {
                "database_url": self._through(self.worker_wire),
                "provider_url": f"http://127.0.0.1:{self.provider_wire.port}",
            },
            "serve": {"database_url": self._through(self.api_wire)},
        }
        for part, settings in parts.items():
            process = self._processes.get(part)
            if process is None or process.poll() is not None:
                self._start(part, **common | settings)

    def _through(self, wire: Proxy) -> str:
        port = urlsplit(self._url).port
        return self._url.replace(f":{port}/", f":{wire.port}/")

    def _stop(self) -> None:
        for wire in self.wires:
            wire.hold()
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.wait(30)
        self._stack.close()


def _is(part: str, process: psutil.Process) -> bool:
    """granian's workers are forks of `serve`, and may carry another command line."""
    command = process.cmdline()
    if part == "postgres":
        return bool(command) and Path(process.exe()).name == "postgres"
    parent = process.parent()
    return any(
        "flashsale" in it and part in it for it in (command, parent and parent.cmdline()) if it
    )
