"""The embedded Postgres: a data directory, and a postmaster that is our child and ends with us."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg

from flashsale.dev.binaries import EmbeddedError, can_enter, unprivileged_user, wheel_binaries
from flashsale.dev.logs import open_log
from flashsale.processes import die_with_parent, free_port

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
"""Settings of the server. docker-compose.yml sets the same."""

RESERVED: Mapping[str, str] = {"reserved_connections": "10"}
"""Further settings from PostgreSQL 16 on: connections that only the service's login may use. Holds
expire and lines are served however many others connect. docker-compose.yml sets the same."""

NO_LARGE_OBJECTS = """
revoke execute on function lo_create(oid), lo_creat(integer), lo_from_bytea(oid, bytea) from public
"""
"""By default every role may create large objects until the disk is full. Only a superuser can take
that right away."""

OWNER_LIMITS = """
alter role flashsale connection limit 280;
alter role flashsale set idle_in_transaction_session_timeout = '5min'
"""
"""Of the service's login, by a superuser: whatever it does, others get in. docker/init.sql sets the
same. The limits of the audiences' roles are in sql/roles.sql."""

SUPERUSER_FILE = "superuser.password"
OWNER_FILE = "flashsale.password"
"""Files of the passwords in the data directory. Nothing but this module uses the superuser's."""
_SHARED_FILE = "postgres.password"
"""The file of the password that both had in data of an earlier version."""

_SOCKET_PATH_BYTES = 107  # what fits into sockaddr_un on Linux
_PREDECESSOR_SECONDS = 30.0  # how long a killed service's Postgres may take to shut down
_AWAY = Path("/var/lib/flashsale")
"""Where data goes if its own folder is closed to the user that Postgres runs as."""


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
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self.port = port
        self._user = unprivileged_user()
        self.bin_dir = Path(bin_dir) if bin_dir else wheel_binaries(self._user)
        self._settings = {**SETTINGS, **(settings or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._cluster = self.data_dir / "postgres"
        self._socket_dir = self.data_dir
        self._lock: int | None = None

    def start(self, timeout_seconds: float = 60) -> EmbeddedPostgres:
        """Starts Postgres and waits until it answers. After a crash, Postgres recovers first.

        Call it from a thread that outlives the server, such as the main thread: Postgres ends when
        that thread ends.
        Errors: EmbeddedError if the data belongs to another version or a running server, or if
        Postgres does not come up.
        """
        self._take_lock()
        try:
            self._start(timeout_seconds)
        except BaseException:
            self.stop()
            raise
        return self

    def _start(self, timeout_seconds: float) -> None:
        self._cluster = self._choose_cluster()
        self._make_passwords()
        self._make_cluster()
        self._wait_for_the_last_one()
        self._socket_dir = self._make_socket_dir()
        self.port = self.port or free_port()
        options = {
            **(RESERVED if self._major_version() >= 16 else {}),
            **self._settings,
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self._socket_dir),
        }
        arguments = [str(self.bin_dir / "postgres"), "-D", str(self._cluster)]
        for name, value in options.items():
            arguments += ["-c", f"{name}={value}"]
        with open_log(self.data_dir / "postgres.log") as log:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # so that Ctrl-C reaches only us: we stop Postgres last
                preexec_fn=die_with_parent,
                cwd=self._cluster,
                env={**os.environ, "PGPASSFILE": str(self._write_password_file())},
                **self._identity(),
            )
        self._wait_until_it_answers(timeout_seconds)
        self._make_database()

    def stop(self, timeout_seconds: float = 30) -> None:
        """Shuts down in the fast mode, which ends all sessions. Kills after the timeout."""
        if self.is_running():
            assert self._process is not None
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(timeout_seconds)
            except subprocess.TimeoutExpired:
                self._process.send_signal(signal.SIGQUIT)
                self._process.wait()
        self._process = None
        if self._socket_dir != self.data_dir:
            self._remove_socket_dir()
            self._socket_dir = self.data_dir
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

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
        """Whether the postmaster runs."""
        return self._process is not None and self._process.poll() is None

    def url(self, database: str = "flashsale", user: str = "flashsale") -> str:
        """URL over TCP; it carries the password of the owner, or of the superuser postgres."""
        password = self._password(SUPERUSER_FILE if user == "postgres" else OWNER_FILE)
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{database}"

    def _password(self, file: str) -> str:
        return (self.data_dir / file).read_text().strip()

    def _make_passwords(self) -> None:
        """Makes those that are missing: all for a new cluster, or for that of an earlier version.

        The server learns them later, so a start that is killed in between changes nothing.
        """
        for secret in (SUPERUSER_FILE, OWNER_FILE):
            if not (self.data_dir / secret).exists():
                draft = self.data_dir / f"{secret}.draft"
                draft.unlink(missing_ok=True)
                draft.touch(0o600)
                draft.write_text(secrets.token_hex(16) + "\n")
                draft.rename(self.data_dir / secret)

    def _write_password_file(self) -> Path:
        """Writes passwords for pg_cron, which connects to its own server as a client does."""
        path = self._cluster / "pgpass"
        path.unlink(missing_ok=True)
        path.touch(0o600)
        path.write_text(
            f"127.0.0.1:*:*:postgres:{self._password(SUPERUSER_FILE)}\n"
            f"127.0.0.1:*:*:flashsale:{self._password(OWNER_FILE)}\n"
        )
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
        """Runs initdb in a draft folder and renames that, so that a kill leaves no half cluster."""
        if self._cluster.exists():
            ours = subprocess.run(
                [self.bin_dir / "postgres", "--version"], capture_output=True, text=True, check=True
            ).stdout.split()[2]
            theirs = (self._cluster / "PG_VERSION").read_text().strip()
            if not re.match(rf"{theirs}\D", ours):
                raise EmbeddedError(
                    f"{self._cluster} belongs to PostgreSQL {theirs}, this is {ours}: "
                    "use another --data-dir, or move the data with pg_upgrade"
                )
            return
        for old in self._cluster.parent.glob(".initdb-*"):  # left by a start that was killed
            shutil.rmtree(old, ignore_errors=True)
            old.unlink(missing_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".initdb-", dir=self._cluster.parent))
        try:
            self._own(draft)
            for_initdb = draft.with_suffix(".pw")
            for_initdb.touch(0o600)
            for_initdb.write_text((self.data_dir / SUPERUSER_FILE).read_text())
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
                preexec_fn=lambda: die_with_parent(signal.SIGKILL),
                **self._identity(),
            )
            for_initdb.unlink()
            if result.returncode:
                raise EmbeddedError(f"initdb failed: {result.stderr.strip() or result.stdout}")
            os.sync()
            (draft / "data").rename(self._cluster)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _major_version(self) -> int:
        return int((self._cluster / "PG_VERSION").read_text())

    def _choose_cluster(self) -> Path:
        """The folder of the cluster: in the data directory, if Postgres's user can reach that.

        If not, it is in a folder with a random name below _AWAY, and the data directory has a link
        to it. So a new data directory never finds the data of a removed one with the same path.
        """
        place = self.data_dir / "postgres"
        if place.is_symlink():
            return place.resolve()
        if self._user is None or can_enter(self.data_dir, self._user):
            return place
        _AWAY.mkdir(parents=True, exist_ok=True)
        _AWAY.chmod(0o711)
        home = Path(tempfile.mkdtemp(prefix=f"{self.data_dir.name}-", dir=_AWAY))
        home.chmod(0o711)
        place.symlink_to(home / "postgres")
        return home / "postgres"

    def _take_lock(self) -> None:
        """Lets in one process at a time. The kernel releases the lock when the process dies."""
        in_use = EmbeddedError(
            f"{self.data_dir} is in use by another running flashsale: stop that first, or use "
            "another --data-dir (or FLASHSALE_DATA_DIR)"
        )
        # This check comes first, because the lock belongs to the process: the process would get it
        # again, and closing the second file would release the lock of the first.
        if any(_parent_of(pid) == os.getpid() for pid in _postgres_in(self._cluster)):
            raise in_use
        self._lock = os.open(self.data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            self._lock = None
            raise in_use from None

    def _wait_for_the_last_one(self) -> None:
        """Waits for the Postgres of a killed parent, which also ends, but takes some time to."""
        deadline = time.monotonic() + _PREDECESSOR_SECONDS
        while left := _postgres_in(self._cluster):
            if time.monotonic() > deadline:
                raise EmbeddedError(
                    f"{self.data_dir} is in use: Postgres runs there as process {min(left)}. Stop "
                    "it first, or use another --data-dir"
                )
            time.sleep(0.05)
        # No Postgres runs on this data, and we hold the lock. So the file of process ids is stale
        # and is removed: Postgres would only check its process id, which another process may have
        # now.
        (self._cluster / "postmaster.pid").unlink(missing_ok=True)

    def _make_socket_dir(self) -> Path:
        longest = len(os.fsencode(self.data_dir / ".s.PGSQL.65535.lock"))
        if longest <= _SOCKET_PATH_BYTES and self._user is None:
            return self.data_dir
        # A socket needs a short path, in a folder that Postgres's user may write.
        self._remove_socket_dir()  # left by a start that was killed
        folder = Path(tempfile.mkdtemp(prefix="flashsale-", dir="/tmp"))
        self._own(folder)
        (self.data_dir / "socket").symlink_to(folder)
        return folder

    def _remove_socket_dir(self) -> None:
        link = self.data_dir / "socket"
        if link.is_symlink():
            shutil.rmtree(link.readlink(), ignore_errors=True)
            link.unlink()

    def _wait_until_it_answers(self, timeout_seconds: float) -> None:
        assert self._process is not None
        deadline = time.monotonic() + timeout_seconds
        while True:
            if self._process.poll() is not None:
                raise EmbeddedError(f"Postgres did not start:\n{self._last_words()}")
            try:
                with self._first_session() as conn:
                    # If the port is taken, ours ends in a moment, and another server answers here.
                    # Its password is the same if both are copies of one cluster.
                    answering = conn.execute("show data_directory").fetchone()
                if answering == (str(self._cluster),):
                    return
                problem = f"another server answers on port {self.port}"
            except psycopg.OperationalError as error:
                problem = str(error)
            if time.monotonic() > deadline:
                self.stop()
                raise EmbeddedError(
                    f"Postgres did not answer within {timeout_seconds:g} s: {problem}"
                )
            time.sleep(0.02)

    def _first_session(self) -> psycopg.Connection[tuple[Any, ...]]:
        """A superuser's session. Sets the superuser's own password in data of an earlier version.

        There the password is one that the whole service had.
        """
        url = self.url("postgres", "postgres")
        shared = self.data_dir / _SHARED_FILE
        try:
            conn = psycopg.connect(url, connect_timeout=5)
        except psycopg.OperationalError as error:
            if not shared.exists() or "password authentication failed" not in str(error):
                raise
            password = shared.read_text().strip()
            conn = psycopg.connect(url, password=password, connect_timeout=5)
            own = self._password(SUPERUSER_FILE)
            conn.execute(psycopg.sql.SQL("alter role postgres password {}").format(own))
            conn.commit()
        shared.unlink(missing_ok=True)
        return conn

    def _last_words(self) -> str:
        text = (self.data_dir / "postgres.log").read_text(errors="replace")
        return "\n".join(text.splitlines()[-5:])

    def _make_database(self) -> None:
        """Makes the owner, who is no superuser, and their database. Each step may be repeated."""
        with psycopg.connect(self.url("postgres", "postgres"), autocommit=True) as conn:
            if conn.execute("select 1 where pg_is_in_recovery()").fetchone():
                return  # a standby has what its primary has
            if not conn.execute("select 1 from pg_roles where rolname = 'flashsale'").fetchone():
                conn.execute("create role flashsale login createrole")
            conn.execute(
                psycopg.sql.SQL("alter role flashsale password {}").format(
                    self._password(OWNER_FILE)
                )
            )
            conn.execute(OWNER_LIMITS)
            if self._major_version() >= 16:
                conn.execute("grant pg_use_reserved_connections to flashsale")
            if not conn.execute("select 1 from pg_database where datname = 'flashsale'").fetchone():
                conn.execute("create database flashsale owner flashsale")
        with psycopg.connect(self.url(user="postgres"), autocommit=True) as conn:
            conn.execute(NO_LARGE_OBJECTS)


def _postgres_in(cluster: Path) -> list[int]:
    """Ids of the Postgres processes that use this data: their working directory is that folder."""
    found = []
    cluster = cluster.resolve()
    for process in Path("/proc").iterdir():
        try:
            if (
                process.name.isdecimal()
                and (process / "cwd").readlink() == cluster
                and (process / "exe").readlink().name.startswith("postgres")
            ):
                found.append(int(process.name))
        except OSError:
            continue  # it has ended, or belongs to another user
    return found


def _parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0  # gone
