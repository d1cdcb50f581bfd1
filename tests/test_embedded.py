from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from flashsale.embedded import EmbeddedError, EmbeddedPostgres
from support import eventually, server_folder

RUN_AND_HANG = """
import sys, time
from flashsale.embedded import EmbeddedPostgres
server = EmbeddedPostgres(sys.argv[1]).start()
print(server.pid, server.url(), flush=True)
time.sleep(600)
"""


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (ProcessLookupError, FileNotFoundError):
        return True


def test_data_survives_a_stop() -> None:
    with server_folder() as folder:
        with EmbeddedPostgres(folder) as server, psycopg.connect(server.url()) as conn:
            conn.execute("create table kept as select 42 as n")
            conn.commit()
        with EmbeddedPostgres(folder) as server, psycopg.connect(server.url()) as conn:
            assert conn.execute("select n from kept").fetchone() == (42,)


def test_postgres_ends_with_its_parent_and_starts_again() -> None:
    with server_folder() as folder:
        parent = subprocess.Popen(
            [sys.executable, "-c", RUN_AND_HANG, str(folder)], stdout=subprocess.PIPE, text=True
        )
        assert parent.stdout is not None
        pid, url = parent.stdout.readline().split()
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute("create table kept as select 42 as n")
            parent.send_signal(signal.SIGKILL)
            parent.wait()
            # At once: the old one may still be shutting down.
            with EmbeddedPostgres(folder) as server, psycopg.connect(server.url()) as again:
                assert again.execute("select n from kept").fetchone() == (42,)
        eventually(lambda: is_gone(int(pid)))


def test_after_a_kill_of_everything_it_recovers() -> None:
    with server_folder() as folder:
        server = EmbeddedPostgres(folder).start()
        with psycopg.connect(server.url(), autocommit=True) as conn:
            conn.execute("create table kept as select 42 as n")
        os.kill(server.pid, signal.SIGKILL)
        assert server._process is not None
        server._process.wait()
        with EmbeddedPostgres(folder) as again, psycopg.connect(again.url()) as conn:
            assert conn.execute("select n from kept").fetchone() == (42,)


def test_one_folder_belongs_to_one_service() -> None:
    with (
        server_folder() as folder,
        EmbeddedPostgres(folder),
        pytest.raises(EmbeddedError, match="in use by another running flashsale"),
    ):
        EmbeddedPostgres(folder).start()


def test_data_of_another_version_is_refused() -> None:
    with server_folder() as folder:
        with EmbeddedPostgres(folder):
            pass
        (folder / "postgres" / "PG_VERSION").write_text("14\n")
        with pytest.raises(EmbeddedError, match="belongs to PostgreSQL 14"):
            EmbeddedPostgres(folder).start()


def test_an_initdb_that_was_cut_short_is_done_again() -> None:
    with server_folder() as folder:
        (folder / ".initdb-abc" / "data").mkdir(parents=True)
        with EmbeddedPostgres(folder) as server:
            assert server.is_running()


def test_a_long_path_is_no_problem() -> None:
    with server_folder() as folder:
        deep = folder / ("x" * 100)
        deep.mkdir(mode=0o711)
        with EmbeddedPostgres(deep) as server:
            assert server.is_running()


def test_the_password_is_for_the_owner_only() -> None:
    with server_folder() as folder, EmbeddedPostgres(folder) as server:
        assert (folder / "postgres.password").stat().st_mode & 0o077 == 0
        host = server.url().split("@")[1]
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(f"postgresql://flashsale:guess@{host}")


def test_bad_settings_are_said_in_postgres_words() -> None:
    with server_folder() as folder, pytest.raises(EmbeddedError, match="shared_buffers"):
        EmbeddedPostgres(folder, settings={"shared_buffers": "lots"}).start()
