"""A small sale under load: every user is one customer who reserves, waits if necessary, and pays.

With `make run` in another terminal:

    .venv/bin/locust --locustfile examples/locustfile.py --headless \
        --host http://127.0.0.1:8000 --users 50 --spawn-rate 25 --run-time 20s

UNITS (default 30) is how many units there are. Customers beyond them join the line.
"""

from __future__ import annotations

import os
import time
from typing import Any
from uuid import uuid4

from locust import HttpUser, between, events, task
from locust.clients import HttpSession
from locust.env import Environment

ITEM = {"name": "Sneaker", "price": 4900, "currency": "EUR", "hold_seconds": 5}
item_id = 0


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def put_on_sale(environment: Environment, **_: Any) -> None:
    """One item per run, with a name of its own."""
    global item_id
    session = HttpSession(environment.host or "", environment.events.request, None)
    item = ITEM | {"sku": f"locust-{uuid4().hex[:8]}", "stock": int(os.environ.get("UNITS", 30))}
    item_id = session.post("/items", json=item).json()["item_id"]


class Customer(HttpUser):
    """Buys again and again, each time as a new customer."""

    wait_time = between(0.1, 0.5)

    @task
    def buy(self) -> None:
        customer = {"X-Customer-Id": uuid4().hex}
        key = {"Idempotency-Key": uuid4().hex}  # makes a retry safe
        path = f"/items/{item_id}/orders"
        order = self.client.post(path, headers=customer | key, name="reserve").json()
        deadline = time.monotonic() + 10
        while order.get("status") in ("waiting", "reserved") and time.monotonic() < deadline:
            checkout = (order["payment"] or {}).get("checkout_url")
            if checkout:  # what the customer's browser does at the payment provider
                self.client.post(f"{checkout}/complete", json={"outcome": "succeed"}, name="pay")
                return
            time.sleep(0.2)
            path = f"/orders/{order['order_id']}"
            order = self.client.get(path, headers=customer, name="look again").json()
