"""The server around the applications: open files, silent connections, and no HTTP/2."""

from __future__ import annotations

import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from flashsale.processes import free_port, raise_open_files
from flashsale.testing.processes import environment, stop
from http_support import SECRET
from sockets import all_answered
from support import eventually

NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"
SILENT = 400


class RunningServer:
    """A running `flashsale serve` or `flashsale provider`."""

    def __init__(self, port: int, output: Path) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._output = output

    @property
    def log(self) -> str:
        return self._output.read_text()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health/live", timeout=30).status_code == 200
        except httpx.TransportError:  # cut as silent, because this machine is slow
            return False


@contextmanager
def serving(
    folder: Path,
    command: str = "serve",
    *,
    before: Callable[[], None] | None = None,
    **settings: object,
) -> Iterator[RunningServer]:
    server = RunningServer(free_port(), folder / "output")
    settings = {
        "database_url": NOWHERE,
        "webhook_secret": SECRET,
        "provider_ledger": folder / "ledger",
    } | settings
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "flashsale", command, "--port", str(server.port)],
            env=environment(**settings),
            stdout=output,
            stderr=output,
            preexec_fn=before,
        )
    try:
        eventually(lambda: listens(server), 60)
        yield server
    finally:
        stop(process)


def listens(server: RunningServer) -> bool:
    try:
        return httpx.get(f"{server.url}/", timeout=5).status_code == 404
    except httpx.TransportError:
        return False


def limited_to(soft: int, hard: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def is_cut(client: socket.socket) -> bool:
    """Whether the server disconnects, in the time that the socket waits."""
    try:
        return client.recv(65536) == b""
    except ConnectionResetError:
        return True


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = bytes(3) + b"\x04" + bytes(5)
HEADERS_WITHOUT_END = b"\x00\x40\x00\x01\x00\x00\x00\x00\x01" + bytes(0x4000)


@pytest.mark.parametrize("command", ["serve", "provider"])
def test_http_2_is_not_spoken(tmp_path: Path, command: str) -> None:
    """A frame would begin with its length; the answer is the end, or a 4xx of HTTP/1.1."""
    with serving(tmp_path, command) as server:
        for bytes_sent in (PREFACE + SETTINGS, PREFACE + SETTINGS + HEADERS_WITHOUT_END):
            with server.connect() as client:
                received = all_answered(client, bytes_sent)
                assert received == b"" or received.startswith(b"HTTP/1.1 4")
        with server.connect() as client:  # an offer to change to HTTP/2 is not taken
            client.sendall(
                b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\n"
                b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
            )
            assert client.recv(65536).startswith(b"HTTP/1.1 404")


def test_a_header_takes_little_memory_whatever_a_client_sends(tmp_path: Path) -> None:
    """Or a thousand connections that never end their headers would fill the pod's memory."""
    start = b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: "
    with serving(tmp_path) as server:
        for length, status in ((16_000, b"404"), (40_000, b"431")):
            with server.connect() as client:
                client.sendall(start + b"x" * length)
                if status == b"404":
                    client.sendall(b"\r\n\r\n")
                assert client.recv(65536).startswith(b"HTTP/1.1 " + status), length


def nothing(client: socket.socket) -> None:
    """Sends nothing."""


def half_a_header(client: socket.socket) -> None:
    client.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\nX-Slow: ")


def a_request(client: socket.socket) -> None:
    client.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
    assert client.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("command", ["serve", "provider"])
def test_a_silent_connection_is_cut_whatever_it_sent_before(tmp_path: Path, command: str) -> None:
    with serving(tmp_path, command, idle_connection_seconds=1) as server:
        for begin in (nothing, half_a_header) if command == "provider" else BEGINNINGS:
            with server.connect() as client:
                begin(client)
                assert is_cut(client), begin


BEGINNINGS = (nothing, half_a_header, a_request)


def test_the_limit_of_open_files_is_raised_as_far_as_is_needed_and_allowed() -> None:
    code = (
        "import resource; from flashsale.processes import raise_open_files\n"
        "print(*(raise_open_files(n) for n in (50, 300, 9000)))\n"
        "print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        preexec_fn=limited_to(200, 1000),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["200", "300", "1000", "1000", "1000"]


def test_a_limit_that_is_high_enough_stays() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert raise_open_files(1) == before[0]
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before


def test_more_silent_connections_than_a_shell_allows_files_hold_nobody_up(tmp_path: Path) -> None:
    with serving(tmp_path, before=limited_to(256, 4096), max_connections=2000) as server:
        with ExitStack() as crowd:
            for _ in range(SILENT):
                crowd.enter_context(server.connect())
            eventually(server.answers, 60)
        assert "open files" not in server.log


@pytest.mark.slow
def test_a_limit_of_open_files_that_is_too_low_is_told_and_silence_is_cut(tmp_path: Path) -> None:
    few = {"before": limited_to(256, 256), "idle_connection_seconds": 1}
    with serving(tmp_path, **few) as server:  # type: ignore[arg-type]
        (told,) = [line for line in server.log.splitlines() if "open files" in line]
        assert "WARNING" in told and "256" in told and "16384" in told and "ulimit -n" in told
        with ExitStack() as crowd:
            silent = [crowd.enter_context(server.connect()) for _ in range(SILENT)]
            eventually(server.answers, 60)  # as soon as silent connections have been cut
            assert all(is_cut(client) for client in silent)


def test_a_worker_tells_of_a_limit_that_is_too_low(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "flashsale", "worker"],
        env=environment(database_url=NOWHERE),
        stderr=subprocess.PIPE,
        preexec_fn=limited_to(128, 128),
    )
    assert process.stderr is not None
    with process.stderr as log:
        first = log.readline().decode()
        process.terminate()
        log.read()
    process.wait(30)
    assert "WARNING" in first and "128" in first and "open files" in first
