"""A running `flashsale dev`, for tests that need the whole service over real sockets."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from flashsale.processes import free_port
from flashsale.testing.processes import environment, is_ready, stop
from support import eventually


class Dev:
    """A running `flashsale dev`."""

    def __init__(self, folder: Path, *arguments: str, **settings: object) -> None:
        self.port, self.provider_port = free_port(), free_port()
        self.api_url = f"http://127.0.0.1:{self.port}"
        self.provider_url = f"http://127.0.0.1:{self.provider_port}"
        self.data_dir = folder / "data"
        self.output = folder / "output"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "flashsale", "dev", "--data-dir", str(self.data_dir)),
                    *("--port", str(self.port), "--provider-port", str(self.provider_port)),
                    *arguments,
                ],
                env=environment(**settings),
                stdout=output,
                stderr=output,
            )
        self.http = httpx.Client(base_url=self.api_url, timeout=10)

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.output.read_text()
        return is_ready(self.api_url) and is_ready(self.provider_url)

    def database_url(self) -> str:
        """The URL of the database, as the owner of the tables."""
        return (self.data_dir / "database.url").read_text().strip()

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def reserve(self, item_id: int, customer: str) -> dict[str, Any]:
        answer = self.http.post(f"/items/{item_id}/orders", headers={"X-Customer-Id": customer})
        assert answer.status_code in (200, 201, 202), answer.text
        return dict(answer.json())

    def order(self, order: dict[str, Any]) -> dict[str, Any]:
        customer = {"X-Customer-Id": order["customer_id"]}
        return dict(self.http.get(f"/orders/{order['order_id']}", headers=customer).json())

    def put_on_sale(self, **terms: Any) -> int:
        item = {"sku": "shoe", "name": "Shoe", "price": 1000, "currency": "EUR", "stock": 1}
        answer = self.http.post("/items", json=item | {"hold_seconds": 60} | terms)
        assert answer.status_code == 201, answer.text
        return int(answer.json()["item_id"])


@contextmanager
def running(folder: Path, *arguments: str, **settings: object) -> Iterator[Dev]:
    """settings: of the environment."""
    dev = Dev(folder, *arguments, **settings)
    try:
        eventually(dev.is_ready, 60)
        yield dev
    finally:
        dev.http.close()
        if dev.process.poll() is None:
            stop(dev.process)
