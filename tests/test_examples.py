"""Every file in examples/ is run as its first lines say, against a running service."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from dev_support import Dev, running
from flashsale import signature, standard_webhooks
from flashsale.dev.binaries import wheel_binaries
from flashsale.processes import free_port
from flashsale.testing.processes import environment, stop
from support import eventually, put_cluster, server_folder

EXAMPLES = Path(__file__).parents[1] / "examples"
LONGEST_LINES = 60
ADAPTERS = {"stripe_provider.py": 300}  # to be used as they are; tested in a file of their own
PG = "pg@8"
SECRET = "a secret of the examples"


def run(dev: Dev, *command: str, **environ: str) -> str:
    """The output of a command. Errors: AssertionError if it fails."""
    ended = attempt(dev, *command, **environ)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def attempt(dev: Dev, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=os.environ | {"DATABASE_URL": dev.database_url()} | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def sells_the_only_unit(dev: Dev, *command: str) -> None:
    """Ann gets the only unit of a new item and pays, once; Bob joins the line."""
    shoe = str(dev.put_on_sale(sku=Path(command[-1]).name, stock=1))
    reserved, paid = run(dev, *command, shoe, "ann", "k1").splitlines()
    assert reserved.startswith("ann: reserved with ticket 1")
    assert paid == "ann: paid"
    assert run(dev, *command, shoe, "ann", "k1") == "ann: paid\n"
    assert run(dev, *command, shoe, "bob", "k2").startswith("bob: waiting")


def test_every_example_is_tested_short_and_listed() -> None:
    files = sorted(it.name for it in EXAMPLES.iterdir() if it.is_file() and it.name != "README.md")
    assert sorted(re.findall(r"^\| \[([\w.]+)\]", (EXAMPLES / "README.md").read_text(), re.M)) == (
        files
    )
    for name in files:
        text = (EXAMPLES / name).read_text()
        assert text.count("\n") <= ADAPTERS.get(name, LONGEST_LINES), name
        assert f"examples/{name}" in text, f"{name} does not say how to run it"


def test_the_example_for_python_reserves_and_pays(dev: Dev) -> None:
    command = (sys.executable, str(EXAMPLES / "reserve_and_pay.py"))
    sells_the_only_unit(dev, *command)
    misused = attempt(dev, *command, "999", "ann", "k1")
    assert (misused.returncode, misused.stderr.split(":")[0]) == (1, "RV101")


@pytest.fixture(scope="module")
def node_modules() -> Path:
    """A folder with Node's package pg, made once per machine."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node or npm is missing: apt-get install nodejs npm")
    cache = Path(tempfile.gettempdir()) / f"flashsale-test-{PG}-{os.geteuid()}"
    if not cache.exists():
        draft = Path(tempfile.mkdtemp(prefix="flashsale-test-"))
        done = subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund", "--prefix", draft, PG],
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        if done.returncode:
            shutil.rmtree(draft)
            pytest.skip(f"npm can't install {PG}: {done.stderr.strip().splitlines()[0]}")
        try:
            draft.rename(cache)
        except OSError:  # another run was faster
            shutil.rmtree(draft)
    assert cache.stat().st_uid == os.geteuid(), f"{cache} is not ours"
    return cache / "node_modules"


def test_the_example_for_node_reserves_and_pays(
    dev: Dev, node_modules: Path, tmp_path: Path
) -> None:
    # Node looks for pg beside the script, and nothing may be installed into the repository.
    script = Path(shutil.copy(EXAMPLES / "reserve_and_pay.mjs", tmp_path))
    (tmp_path / "node_modules").symlink_to(node_modules)
    sells_the_only_unit(dev, "node", str(script))
    misused = attempt(dev, "node", str(script), "999", "ann", "k1")
    assert (misused.returncode, misused.stderr.split(":")[0]) == (1, "RV101")


def test_the_example_for_psql_reserves_and_pays(dev: Dev, tmp_path: Path) -> None:
    # As a command with the same arguments as the others.
    psql = shutil.which("psql") or str(wheel_binaries() / "psql")
    command = tmp_path / "reserve_and_pay.sh"
    command.write_text(
        f'#!/bin/sh\nexec {psql} "$DATABASE_URL" --no-psqlrc --quiet -v item_id="$1" '
        f'-v customer="$2" -v key="$3" -f {EXAMPLES / "reserve_and_pay.sql"}\n'
    )
    command.chmod(0o755)
    sells_the_only_unit(dev, str(command))
    misused = attempt(dev, str(command), "999", "ann", "k1")
    assert misused.returncode == 3
    assert "item" in misused.stderr


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The webhook's URL, and the file with what it prints."""
    port, output = free_port(), tmp_path / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, str(EXAMPLES / "webhook_receiver.py"), str(port)],
            env=environment(webhook_secret=SECRET),
            stdout=file,
            stderr=subprocess.DEVNULL,
        )
    try:
        url = f"http://127.0.0.1:{port}/"
        eventually(lambda: status_of(url) == 401)
        yield url, output
    finally:
        stop(process)


def status_of(url: str, body: bytes = b"{}", header: str = "") -> int:
    try:
        return httpx.post(url, content=body, headers={signature.HEADER: header}).status_code
    except httpx.TransportError:
        return 0


def test_the_webhook_receiver_takes_the_events_of_the_simulated_provider(
    receiver: tuple[str, Path], tmp_path: Path
) -> None:
    url, output = receiver
    port = free_port()
    provider = subprocess.Popen(
        [sys.executable, "-m", "flashsale", "provider"],
        env=environment(
            webhook_secret=SECRET,
            webhook_url=url,
            provider_port=port,
            provider_url=f"http://127.0.0.1:{port}",
            provider_ledger=tmp_path / "ledger.jsonl",
        ),
        stderr=subprocess.DEVNULL,
    )
    try:
        asked: dict[str, Any] = {"payment_id": "7", "amount": 4900, "currency": "EUR"}
        key = {"Idempotency-Key": "k"}

        def opened() -> Any:
            try:
                return httpx.post(f"http://127.0.0.1:{port}/sessions", json=asked, headers=key)
            except httpx.TransportError:
                return None

        session = eventually(opened).json()
        httpx.post(session["checkout_url"] + "/complete", json={"outcome": "succeed"})
        eventually(lambda: output.read_text() == "payment.succeeded 7 4900\n")
    finally:
        stop(provider)


def test_the_webhook_receiver_refuses_what_the_provider_did_not_sign(
    receiver: tuple[str, Path],
) -> None:
    url, output = receiver
    now = int(time.time())
    event = {"event_id": "e1", "type": "payment.succeeded", "payment_id": "7", "amount": 4900}
    body = json.dumps(event).encode()
    signed = signature.sign(SECRET, body, now)
    for header, text in (
        (signature.sign("another secret", body, now), body),
        (signature.sign(SECRET, body, now - 3600), body),
        (signed, body + b" "),
        ("", body),
    ):
        assert status_of(url, text, header) == 401
    assert output.read_text() == ""
    assert [status_of(url, body, signed) for _ in range(2)] == [200, 200]
    assert output.read_text() == "payment.succeeded 7 4900\n"  # once


@contextmanager
def event_receiver(folder: Path, secret: str) -> Iterator[tuple[str, Path]]:
    """The URL of a running event_receiver.py, and the file with what it prints."""
    port, output = free_port(), folder / "events"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, str(EXAMPLES / "event_receiver.py"), str(port)],
            env=environment(events_secret=secret),
            stdout=file,
            stderr=subprocess.DEVNULL,
        )
    try:
        url = f"http://127.0.0.1:{port}/"
        eventually(lambda: delivered(url, b"{}", {}) == 401)
        yield url, output
    finally:
        stop(process)


def delivered(url: str, body: bytes, headers: dict[str, str]) -> int:
    try:
        return httpx.post(url, content=body, headers=headers).status_code
    except httpx.TransportError:
        return 0


def new_secret() -> str:
    return "whsec_" + base64.b64encode(os.urandom(32)).decode()


def test_the_event_receiver_takes_each_event_once_and_nothing_that_is_not_signed(
    tmp_path: Path,
) -> None:
    ours, old = new_secret(), new_secret()
    now = int(time.time())
    event = {"event_id": "evt_7", "type": "order.paid", "item_id": 1, "order_id": "8", "data": {}}
    body = json.dumps(event).encode()

    def signed(secrets: str, at: int = now) -> dict[str, str]:
        return standard_webhooks.headers(standard_webhooks.keys_of(secrets), "evt_7", at, body)

    with event_receiver(tmp_path, ours) as (url, output):
        for text, headers in (
            (body, signed(old)),
            (body, signed(ours, now - 3600)),
            (body, signed(ours) | {"webhook-id": "evt_8"}),
            (body + b" ", signed(ours)),
            (body, {}),
        ):
            assert delivered(url, text, headers) == 401
        assert output.read_text() == ""
        for secrets in (ours, f"{old} {ours}", f"{ours} {old}"):
            assert delivered(url, body, signed(secrets)) == 204
        assert output.read_text() == "order.paid 1 8\n"  # once


def test_the_event_receiver_takes_the_feed_of_flashsale_dev(tmp_path: Path) -> None:
    secret = new_secret()
    with event_receiver(tmp_path, secret) as (url, output), server_folder() as folder:
        put_cluster(folder / "data")
        with running(folder, events_url=url, events_secret=secret) as dev:
            order = dev.reserve(dev.put_on_sale(), "ann")
            eventually(lambda: order["order_id"] in output.read_text(), 60)


@pytest.mark.skipif(
    importlib.util.find_spec("locust") is None, reason="locust is missing: it is in the extra dev"
)
@pytest.mark.slow
def test_the_locust_file_runs_a_small_sale(dev: Dev) -> None:
    # locust counts its own start into the run time: a busy machine may need more of it.
    for seconds in (3, 15, 40):
        said = run(
            dev,
            *(sys.executable, "-m", "locust", "--locustfile", str(EXAMPLES / "locustfile.py")),
            *("--headless", "--host", f"http://127.0.0.1:{dev.port}", "--only-summary"),
            *("--users", "10", "--spawn-rate", "10", "--run-time", f"{seconds}s"),
            UNITS="5",
        )
        items = dev.http.get("/items", params={"limit": 1000}).json()
        sold = next((it for it in reversed(items) if it["sku"].startswith("locust-")), None)
        if sold and sold["paid"] == 5:
            break
    assert sold, said
    assert (sold["stock"], sold["paid"]) == (5, 5), said
    assert sold["waiting"] >= 5, said
