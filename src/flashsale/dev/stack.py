"""The whole service: Postgres, API, worker and provider as children of one process."""

from __future__ import annotations

import base64
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import msgspec
import psycopg

from flashsale.database.migrate import migrate
from flashsale.dev.binaries import EmbeddedError
from flashsale.dev.logs import open_log, rotate
from flashsale.dev.postgres import EmbeddedPostgres
from flashsale.processes import die_with_parent
from flashsale.settings import Settings, SettingsError, variable, without_password

URL_FILE = "database.url"
_PARTS = ("provider", "worker", "serve")
"""In the order in which they start."""
_BACKOFF_MAX_SECONDS = 10.0
_STEADY_SECONDS = 2.0


class Backoff:
    """When to restart a dead process: at once, or after growing delays if it keeps dying."""

    def __init__(self) -> None:
        self._quick_deaths = 0
        self._started_at = time.monotonic()
        self._again_at = 0.0

    def started(self) -> None:
        """Notes that it has been started."""
        self._started_at = time.monotonic()

    def died(self) -> float:
        """The seconds until it is due."""
        now = time.monotonic()
        steady = now - self._started_at > _STEADY_SECONDS
        self._quick_deaths = 0 if steady else self._quick_deaths + 1
        delay: float = min(0.25 * 2.0**self._quick_deaths, _BACKOFF_MAX_SECONDS)
        self._again_at = now + delay
        return delay

    def is_due(self) -> bool:
        """Whether it is time to start it again."""
        return time.monotonic() >= self._again_at


class Child:
    """One part of the service, which is restarted when it dies."""

    def __init__(self, name: str, environ: dict[str, str], log: Path, say: Callable[[str], None]):
        self.name = name
        self._environ = environ
        self._log = log
        self._say = say
        self._backoff = Backoff()
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def pid(self) -> int:
        """The process id; 0 while it does not run."""
        return self._process.pid if self._process else 0

    def start(self) -> None:
        """Starts it."""
        self._backoff.started()
        with open_log(self._log) as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "flashsale", self.name],
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches only us: we stop the parts in order
                preexec_fn=die_with_parent,
            )

    def watch(self) -> None:
        """Starts it again if it has died."""
        if self._process is None:
            if self._backoff.is_due():
                self.start()
        elif (status := self._process.poll()) is not None:
            delay = self._backoff.died()
            self._say(f"{self.name} ended with status {status}; again in {delay:g} s ({self._log})")
            self._process = None

    def stop(self, timeout_seconds: float) -> None:
        """Asks it to end, and kills it after the timeout."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


class Stack:
    """Everything, started and stopped in order. Use as a context manager.

    Errors: SettingsError for a port that is taken; EmbeddedError and MigrateError.
    """

    def __init__(self, settings: Settings, data_dir: Path, say: Callable[[str], None] = print):
        self._say = say
        self.data_dir = data_dir.resolve()
        self.postgres: EmbeddedPostgres | None = None
        self.children: list[Child] = []
        self.settings = settings
        self._postgres_backoff = Backoff()

    def __enter__(self) -> Stack:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def api_url(self) -> str:
        """Where the API is reached."""
        return f"http://{_reachable(self.settings.host)}:{self.settings.port}"

    @property
    def provider_url(self) -> str:
        """Where the simulated provider is reached."""
        return self.settings.provider_url

    def is_ready(self) -> bool:
        """Whether the API and the provider say that they are ready."""
        try:
            for url in (self.api_url, self.provider_url):
                with urllib.request.urlopen(f"{url}/health/ready", timeout=2):  # noqa: S310 - http only
                    pass
        except (urllib.error.URLError, OSError):
            return False
        return True

    def wait_until_ready(self, timeout_seconds: float = 60) -> None:
        """Waits until everything is ready. Errors: TimeoutError."""
        deadline = time.monotonic() + timeout_seconds
        while not self.is_ready():
            self.watch()
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"not ready within {timeout_seconds:g} s; the logs are in {self.data_dir}"
                )
            time.sleep(0.05)

    def watch(self) -> None:
        """Starts the processes again that have died, and keeps the logs small."""
        for name in ("postgres", *_PARTS):
            rotate(self.data_dir / f"{name}.log")
        self._watch_postgres()
        for child in self.children:
            child.watch()

    def _watch_postgres(self) -> None:
        if self.postgres is None or self.postgres.is_running():
            return
        if not self._postgres_backoff.is_due():
            return
        log = self.data_dir / "postgres.log"
        self._say(f"Postgres has ended; starting it again ({log})")
        try:
            self.postgres.stop()  # its remaining processes
            self._postgres_backoff.started()
            self.postgres.start()
        except (EmbeddedError, psycopg.Error, OSError) as error:
            delay = self._postgres_backoff.died()
            self._say(f"Postgres does not start, again in {delay:g} s: {error}")

    def stop(self) -> None:
        """Stops the API first, so that no request meets a part that has ended; Postgres last."""
        for child in reversed(self.children):
            child.stop(self.settings.shutdown_seconds + 5)
        self.children.clear()
        if self.postgres:
            # `flashsale psql` then says that nothing runs, instead of being refused a connection.
            (self.data_dir / URL_FILE).unlink(missing_ok=True)
            self.postgres.stop()
            self.postgres = None

    def _start(self) -> None:
        _check_port(self.settings.host, self.settings.port, "port")
        _check_port(self.settings.provider_host, self.settings.provider_port, "provider_port")
        self.data_dir.mkdir(parents=True, exist_ok=True)
        if self.settings.database_url:
            url = self.settings.database_url
            self._say(f"database   {without_password(url)}")
        else:
            self._say(f"database   embedded PostgreSQL 18 in {self.data_dir}")
            self.postgres = EmbeddedPostgres(self.data_dir).start()
            url = self.postgres.url()
        migrate(url)
        _write_secret(self.data_dir / URL_FILE, url)
        self.settings = msgspec.structs.replace(
            self.settings,
            database_url=url,
            webhook_secret=self.settings.webhook_secret or self._webhook_secret(),
            provider_url=(
                f"http://{_reachable(self.settings.provider_host)}:{self.settings.provider_port}"
            ),
            webhook_url=f"{self.api_url}/webhooks/payments",
            events_secret=self._events_secret(),
            provider_ledger=str(self.data_dir / "provider-ledger.jsonl"),
        )
        environ = {k: v for k, v in os.environ.items() if not k.startswith("FLASHSALE_")}
        environ |= {
            variable(name): str(getattr(self.settings, name))
            for name in self.settings.__struct_fields__
        }
        for name in _PARTS:
            log = self.data_dir / f"{name}.log"
            self.children.append(Child(name, environ, log, self._say))

    def _webhook_secret(self) -> str:
        """The webhook's secret. It is kept: events from before a restart are signed with it."""
        return self._kept_secret("webhook.secret", secrets.token_hex(32))

    def _events_secret(self) -> str:
        """The secret of deliveries to events_url; it is made and kept if none was given."""
        if self.settings.events_secret or not self.settings.events_url:
            return self.settings.events_secret
        made = base64.b64encode(secrets.token_bytes(32)).decode()
        return self._kept_secret("events.secret", f"whsec_{made}")

    def _kept_secret(self, name: str, new: str) -> str:
        path = self.data_dir / name
        if not path.exists():
            _write_secret(path, new)
        return path.read_text().strip()


def run(settings: Settings, data_dir: Path) -> int:
    """`flashsale dev`: everything, until Ctrl-C or SIGTERM. Returns the exit status."""
    stopping: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda got, _frame: stopping.append(got))
    with Stack(settings, data_dir, _say) as stack:
        _say(f"API        {stack.api_url}  (OpenAPI at {stack.api_url}/schema)")
        _say(f"provider   {stack.provider_url}  (simulated payments)")
        _say(f"logs       {stack.data_dir}/*.log")
        _say(f"psql       {_psql_command(data_dir)}")
        ready = False
        while not stopping:
            stack.watch()
            if not ready and stack.is_ready():
                ready = True
                _say("ready to sell; Ctrl-C stops")
            time.sleep(0.1)
        _say("stopping …")
    _say("stopped")
    return 0


def _psql_command(data_dir: Path) -> str:
    """The command for psql in this folder, whether or not `flashsale` is on the PATH."""
    started_as = Path(sys.argv[0])
    words = [sys.argv[0]] if started_as.name == "flashsale" else [sys.executable, "-m", "flashsale"]
    words.append("psql")
    if data_dir != Path(".flashsale"):
        words += ["--data-dir", str(data_dir)]
    return shlex.join(words)


def _say(line: str) -> None:
    print(line, flush=True)


def _reachable(host: str) -> str:
    """The host for a URL that reaches a server which listens on this host."""
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _check_port(host: str, port: int, name: str) -> None:
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise SettingsError(
            f"{host}:{port} can't be used ({error.strerror}): is flashsale running already? "
            f"Another port: --{name.replace('_', '-')} or {variable(name)}"
        ) from None


def _write_secret(path: Path, text: str) -> None:
    path.touch(0o600)
    path.write_text(text + "\n")
