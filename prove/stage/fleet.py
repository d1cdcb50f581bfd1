"""Postgres, the provider, and any number of workers and replicas of `serve`, each of a release.

Every process is started and stopped one by one, as an orchestrator does it in an upgrade.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from urllib.parse import urlsplit

from flashsale.dev.postgres import EmbeddedPostgres
from flashsale.processes import free_port
from flashsale.testing.processes import stop
from prove.stage.proxy import Proxy
from prove.stage.releases import Release
from prove.stage.service import STARTS_WITHIN_SECONDS, Service

THIS = Release("this version")
DRAIN_SECONDS = 0.5
"""Between the last request that a replica is sent and its SIGTERM."""


class MigrateFailed(Exception):  # noqa: N818 - what happened
    """`flashsale migrate` ended with an error; the message is what it said."""


class Fleet(Service):
    """Starts Postgres only; the rest is added. Use as a context manager.

    postgres: a cluster that is not started, such as a restored one; None: an empty one.
    server: settings of postgresql.conf, if there is no `postgres`. replicas: the URL of each
    `serve` that takes requests, by name. unready: how often a replica was not ready, by its name
    and what it lacked.
    """

    def __init__(
        self,
        postgres: EmbeddedPostgres | None = None,
        server: Mapping[str, str] | None = None,
        **settings: object,
    ) -> None:
        super().__init__(**settings)
        self.postgres = postgres or EmbeddedPostgres(self.data_dir, settings=server)
        self.replicas: dict[str, str] = {}
        self.unready: Counter[tuple[str, str]] = Counter()
        self.ended: list[str] = []
        """Processes that ended although nobody stopped them."""
        self._ready: tuple[str, ...] = ()
        self._stack = ExitStack()
        self._webhook = self._stack.enter_context(Proxy(0))

    def start(self) -> None:
        """Starts Postgres. It ends with the thread that calls this."""
        self._stack.enter_context(self.postgres)

    def wait_until_ready(self, timeout_seconds: float) -> float:
        """Waits until a replica is ready, if there are any. Errors: TimeoutError."""
        began = time.monotonic()
        while self.replicas and not self.is_ready():
            if time.monotonic() > began + timeout_seconds:
                raise TimeoutError(f"not ready within {timeout_seconds:g} s: {self.unready}")
            time.sleep(0.05)
        return time.monotonic() - began

    def database_url(self) -> str:
        return self.postgres.url()

    def urls(self) -> list[str]:
        """Where requests may go: to the replicas that are ready, or to all if none is."""
        there = dict(self.replicas)
        return [there[name] for name in self._ready if name in there] or list(there.values())

    def is_ready(self) -> bool:
        """Whether a replica is ready. Counts what the others lack."""
        ready = []
        for name, url in list(self.replicas.items()):
            lacking = unmet(url)
            if not lacking:
                ready.append(name)
            elif name in self.replicas:  # else it is being stopped
                self.unready[name, ", ".join(lacking)] += 1
        self._ready = tuple(ready)
        if urls := self.urls():
            self._webhook.target_port = urlsplit(urls[0]).port or 0
        return bool(ready)

    def keep_up(self) -> None:
        """Notes processes that ended. Nothing is restarted: nothing here may end by itself."""
        for name, process in list(self._processes.items()):
            if process.poll() is not None and name in self._processes:
                del self._processes[name]
                said = (self.data_dir / f"{name}.out").read_text(errors="replace")[-300:]
                self.ended.append(f"{name} ended by itself with {process.returncode}: {said}")

    def migrate(self, release: Release = THIS, *flags: str) -> float:
        """Runs a release's `flashsale migrate`. Returns the seconds. Errors: MigrateFailed."""
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "flashsale", "migrate", *flags],
            env=release.environment(database_url=self.database_url()),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise MigrateFailed(f"{release.name}: {(done.stdout + done.stderr).strip()[-1000:]}")
        return time.monotonic() - began

    def add_provider(self, release: Release = THIS) -> None:
        """Starts the payment provider, and waits until it answers."""
        self._add("provider", "provider", release)
        self._wait_for(self.provider_url)

    def add_worker(self, name: str, release: Release = THIS) -> None:
        self._add(name, "worker", release)

    def add_replica(self, name: str, release: Release = THIS, *, port: int = 0) -> None:
        """Starts a `serve`, and sends requests to it once it answers, ready or not."""
        port = port or free_port()
        self._add(name, "serve", release, port=port)
        url = f"http://127.0.0.1:{port}"
        self._wait_for(url)
        self.replicas[name] = url
        self.is_ready()

    def remove(self, name: str) -> None:
        """Stops a process in the regular way; a replica gets no more requests before."""
        if self.replicas.pop(name, None):
            self.is_ready()
            time.sleep(DRAIN_SECONDS)
        if process := self._processes.pop(name, None):
            stop(process)

    def crash(self, name: str) -> None:
        """kill -9 of one process."""
        process = self._processes.pop(name)
        process.kill()
        process.wait()

    def _add(self, name: str, command: str, release: Release, **settings: object) -> None:
        common: dict[str, object] = {
            "database_url": self.database_url(),
            "webhook_secret": "for-proof",
            "webhook_url": f"http://127.0.0.1:{self._webhook.port}/webhooks/payments",
            "provider_url": self.provider_url,
            "provider_port": self.provider_port,
            "provider_ledger": self.ledger,
        }
        with (self.data_dir / f"{name}.out").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", "flashsale", command],
                env=release.environment(**common | self._settings | settings),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _wait_for(self, url: str) -> None:
        deadline = time.monotonic() + STARTS_WITHIN_SECONDS
        while "no answer" in unmet(url):
            if time.monotonic() > deadline:
                raise TimeoutError(f"nobody answers at {url}")
            time.sleep(0.05)

    def _stop(self) -> None:
        self.replicas.clear()
        super()._stop()
        self._stack.close()


def unmet(url: str) -> list[str]:
    """The checks that a replica's readiness says have failed; `no answer` if it says nothing."""
    try:
        with urllib.request.urlopen(f"{url}/health/ready", timeout=2):
            return []
    except urllib.error.HTTPError as refusal:
        with refusal:
            body = json.load(refusal)
        return [check["name"] for check in body.get("checks", ()) if not check["ok"]] or ["unready"]
    except (urllib.error.URLError, OSError, ValueError):
        return ["no answer"]
