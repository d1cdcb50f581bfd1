"""Clusters that a proof can kill, copy, or follow with a standby."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

import psutil
from psycopg.rows import namedtuple_row

from flashsale.dev.postgres import OWNER_FILE, SUPERUSER_FILE, EmbeddedPostgres
from flashsale.testing.calls import Connection, connect

MISSING_ROLE = re.compile(r'role "flashsale_\w+" does not exist')


def admin(server: EmbeddedPostgres) -> Connection:
    """A superuser's session in the service's database; its rows are namedtuples."""
    return connect(server.url(user="postgres"), row_factory=namedtuple_row)


def kill(server: EmbeddedPostgres) -> None:
    """SIGKILL for the postmaster and all its children, as when the machine dies."""
    postmaster = psutil.Process(server.pid)
    children = postmaster.children(recursive=True)
    for process in (postmaster, *children):
        with contextlib.suppress(psutil.NoSuchProcess):  # a child may end by itself
            process.kill()
    psutil.wait_procs(children, timeout=10)
    server.stop()  # only its lock and its socket are left


def copy(server: EmbeddedPostgres, home: Path, settings: Mapping[str, str]) -> EmbeddedPostgres:
    """A copy of a stopped cluster in another folder; it is not started."""
    home.mkdir(mode=0o711)
    shutil.copytree(server.data_dir / "postgres", home / "postgres")
    return _adopted(server, home, settings)


def standby(primary: EmbeddedPostgres, home: Path, name: str) -> EmbeddedPostgres:
    """A standby that streams from the primary under this name; it is not started."""
    conninfo = f"{primary.url('postgres', 'postgres')}?application_name={name}"
    second = base_backup(primary, home, {"primary_conninfo": conninfo})
    (home / "postgres" / "standby.signal").touch()
    return second


def base_backup(
    server: EmbeddedPostgres, home: Path, settings: Mapping[str, str] | None = None
) -> EmbeddedPostgres:
    """A copy of a running server, as of the end of the copying; it is not started."""
    home.mkdir(mode=0o711)
    source = server.url("postgres", "postgres")
    subprocess.run(
        [
            server.bin_dir / "pg_basebackup",
            *("-D", home / "postgres", "-d", source, "--checkpoint=fast", "--no-sync"),
        ],
        check=True,
        capture_output=True,
    )
    return _adopted(server, home, settings or {})


def dump(server: EmbeddedPostgres, path: Path) -> None:
    """A dump of the service's database. Roles are not in it."""
    source = server.url(user="postgres")
    subprocess.run(
        [server.bin_dir / "pg_dump", "--format=custom", f"--file={path}", source],
        check=True,
        capture_output=True,
    )


def restore_dump(server: EmbeddedPostgres, path: Path) -> None:
    """Restores a dump into a running server. That its roles are missing is no error here."""
    said = subprocess.run(
        [server.bin_dir / "pg_restore", f"--dbname={server.url(user='postgres')}", path],
        check=False,
        capture_output=True,
        text=True,
    ).stderr
    errors = re.findall(r"error: (?:could not execute query: )?ERROR: +(.*)", said)
    if other := [it for it in errors if not MISSING_ROLE.match(it)]:
        raise RuntimeError(f"pg_restore: {other[:5]}")


def _adopted(origin: EmbeddedPostgres, home: Path, settings: Mapping[str, str]) -> EmbeddedPostgres:
    for secret in (SUPERUSER_FILE, OWNER_FILE):
        shutil.copy2(origin.data_dir / secret, home)
    cluster = home / "postgres"
    user = (origin.data_dir / "postgres").stat()
    for path in (cluster, *cluster.rglob("*")):
        os.chown(path, user.st_uid, user.st_gid, follow_symlinks=False)
    return EmbeddedPostgres(home, settings=settings)


def freeze(server: EmbeddedPostgres, *, frozen: bool) -> None:
    """Stops all processes of a server, or lets them go on, like a machine that does not answer."""
    postmaster = psutil.Process(server.pid)
    for process in (postmaster, *postmaster.children(recursive=True)):
        process.send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)
