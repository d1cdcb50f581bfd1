"""`flashsale dev` from its user's view: ready, stopped, killed, started again, misused."""

from __future__ import annotations

import contextlib
import resource
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest

from dev_support import Dev, running
from flashsale.dev.stack import Stack
from flashsale.settings import Settings
from support import eventually, put_cluster, server_folder


def all_gone(family: list[psutil.Process]) -> bool:
    return not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def has_printed(dev: Dev, words: str) -> bool:
    return words in dev.output.read_text()


def test_dev_sells_takes_the_money_and_stops_without_orphans() -> None:
    with server_folder() as folder, running(folder) as dev:
        shoe = dev.put_on_sale(hold_seconds=2)
        ann, bob = dev.reserve(shoe, "ann"), dev.reserve(shoe, "bob")
        assert (ann["status"], bob["status"]) == ("reserved", "waiting")
        # ann does not pay: bob is served, pays, and has it.
        eventually(lambda: (dev.order(bob)["payment"] or {}).get("checkout_url"))
        checkout = dev.order(bob)["payment"]["checkout_url"]
        assert checkout.startswith(f"http://127.0.0.1:{dev.provider_port}/")
        httpx.post(checkout + "/complete", json={"outcome": "succeed"}).raise_for_status()
        eventually(lambda: dev.order(bob)["status"] == "paid")
        assert dev.order(ann)["status"] == "expired"

        family = dev.family()
        assert len(family) > 5
        with httpx.stream(
            "GET",
            f"http://127.0.0.1:{dev.port}/orders/{dev.reserve(shoe, 'cid')['order_id']}/events",
            headers={"X-Customer-Id": "cid"},
        ) as events:
            next(events.iter_lines())
            dev.process.send_signal(signal.SIGTERM)
            assert dev.process.wait(30) == 0
        eventually(lambda: all_gone(family))
        assert "stopped" in dev.output.read_text()
        assert not (folder / "data" / "database.url").exists()  # the URL would not work any more
        secret = (folder / "data" / "webhook.secret").read_text().strip()
        for log in (folder / "data").glob("*.log"):
            text = log.read_text(errors="replace")
            assert secret not in text
            assert checkout not in text
            assert log.stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_a_kill_loses_nothing_and_leaves_no_process_behind() -> None:
    with server_folder() as folder:
        put_cluster(folder / "data")
        with running(folder) as dev:
            shoe = dev.put_on_sale(stock=1)
            ann, bob = dev.reserve(shoe, "ann"), dev.reserve(shoe, "bob")
            eventually(lambda: (dev.order(ann)["payment"] or {}).get("checkout_url"))
            before = [dev.order(ann), dev.order(bob)]
            family = dev.family()
            dev.process.kill()
            dev.process.wait()
        with running(folder) as dev:
            assert [dev.order(ann), dev.order(bob)] == before
            assert dev.reserve(shoe, "ann")["order_id"] == ann["order_id"]
            # The provider's ledger survived too. Its address is another one this time.
            path = httpx.URL(before[0]["payment"]["checkout_url"]).path
            httpx.post(
                f"http://127.0.0.1:{dev.provider_port}{path}/complete", json={"outcome": "succeed"}
            ).raise_for_status()
            eventually(lambda: dev.order(ann)["status"] == "paid")
        eventually(lambda: all_gone(family))


@pytest.mark.storm
def test_a_part_that_dies_is_started_again() -> None:
    with server_folder() as folder, running(folder) as dev:
        for name in ("worker", "serve", "provider"):
            victim, *_ = [p for p in dev.family() if p.cmdline()[-2:] == ["flashsale", name]]
            victim.kill()
            eventually(partial(has_printed, dev, f"{name} ended"))
        eventually(dev.is_ready, 30)
        shoe = dev.put_on_sale()
        order = dev.reserve(shoe, "ann")
        eventually(lambda: (dev.order(order)["payment"] or {}).get("checkout_url"), 20)


@pytest.mark.slow
def test_a_postgres_that_dies_is_started_again() -> None:
    with server_folder() as folder:
        put_cluster(folder / "data")
        with running(folder) as dev:
            shoe = dev.put_on_sale()
            order = dev.reserve(shoe, "ann")
            (postmaster,) = [
                child
                for child in psutil.Process(dev.process.pid).children()
                if Path(child.exe()).name == "postgres"
            ]
            for victim in [postmaster, *postmaster.children()]:
                victim.kill()
            eventually(lambda: "Postgres has ended" in dev.output.read_text())
            eventually(dev.is_ready, 30)
            assert dev.order(order)["ticket"] == order["ticket"]


class FullDisk:
    """A Postgres with enough disk space to start, but none to write anything."""

    def is_running(self) -> bool:
        return False

    def stop(self) -> None:
        pass

    def start(self) -> None:
        raise psycopg.errors.DiskFull("no space left on device")


def test_a_postgres_that_starts_but_can_not_write_is_tried_again() -> None:
    with server_folder() as folder:
        said: list[str] = []
        stack = Stack(Settings(), folder, said.append)
        stack.postgres = FullDisk()  # type: ignore[assignment]
        stack.watch()
        assert "no space left" in said[-1]


def test_a_port_that_is_taken_is_reported_at_once() -> None:
    with server_folder() as folder, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = subprocess.run(
            [
                *(sys.executable, "-m", "flashsale", "dev"),
                *("--data-dir", str(folder / "data"), "--port", str(port)),
            ],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert result.returncode == 2
        assert f"127.0.0.1:{port} can't be used" in result.stderr
        assert "--port" in result.stderr
        assert "Traceback" not in result.stderr


@pytest.mark.storm
def test_open_streams_beyond_granian_s_default_bound_delay_no_request() -> None:
    """By default granian admits 1,024 requests at a time, and a stream counts as one."""
    streams = 1100
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    with server_folder() as folder, running(folder) as dev, contextlib.ExitStack() as opened:
        order = dev.reserve(dev.put_on_sale(), "ann")
        request = (
            f"GET /orders/{order['order_id']}/events HTTP/1.1\r\nHost: localhost\r\n"
            "X-Customer-Id: ann\r\n\r\n"
        ).encode()
        for _ in range(streams):
            follower = opened.enter_context(socket.create_connection(("127.0.0.1", dev.port), 30))
            follower.sendall(request)
            assert follower.recv(12) == b"HTTP/1.1 200"
        assert dev.http.get("/health/live").status_code == 200
        assert dev.reserve(order["item_id"], "bob")["status"] == "waiting"
