"""A seeded sale over HTTP in an open loop: customers arrive by a plan, however slow answers are.

Every customer has a habit: most pay; some hang up and try again, press twice, fail to pay first,
pay late, never pay, or cancel. In a sale with staff, others pay at the last moment or at a till, or
get their money back. The history records all requests and answers. Meanwhile an operator restocks
and withdraws. When the faults are over, `finish` repeats the requests whose result is
unknown, closes the sale and waits until nothing is due.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from prove.customers.client import Gateway, SharedConnections, Unanswered
from prove.customers.staff import Staff
from prove.judge.history import History, Op

HABITS = {
    "pays": 40,
    "hangs up": 10,
    "presses twice": 10,
    "fails first": 8,
    "pays late": 6,
    "never pays": 13,
    "cancels": 13,
}
MONEY_HABITS = {
    "pays": 10,
    "hangs up": 3,
    "presses twice": 3,
    "fails first": 9,
    "pays late": 5,
    "never pays": 4,
    "cancels": 4,
    "pays at the last moment": 36,
    "pays at the till": 8,
    "gives back": 9,
    "is refunded": 9,
    "is refunded, unit kept out": 2,
    "is refunded at the provider": 6,
}
"""Of a sale with staff. Who pays at the last moment, is paid for after the deadline: their events
are late."""
MOMENTS = {"pays late": (-0.1, 0.1), "pays at the last moment": (-0.7, -0.1)}
"""When they pay: so many seconds after the deadline."""
BACK = ("gives back", "is refunded", "is refunded, unit kept out", "is refunded at the provider")
EXTEND_EACH = 20
AGAIN = 0.2
"""The share of refunds that staff order twice."""
REFUND_SECONDS = 600
SINGLE = 0.7
"""The share of customers who ask for one unit, where others may ask for several."""
ATTEMPTS = 12  # to reserve with the same key while there is no answer
PRICE = 1000


@dataclass(frozen=True)
class Plan:
    """One customer: when they arrive (seconds from the start), what they want, and their habit."""

    at: float
    customer: str
    item_id: int
    habit: str
    quantity: int = 1
    min_quantity: int = 1


@dataclass(frozen=True)
class Size:
    """The size of a sale. hot sells out in the end, scarce at once, the ordinary items never.

    max_per_order: what the limit of the items is, and the most that anybody asks for. If it is more
    than 1, the ordinary items are variants of one product.
    """

    customers: int
    per_second: float
    hot_stock: int = 60
    scarce_stock: int = 2
    ordinary: int = 4
    ordinary_stock: int = 100_000
    hold_seconds: int = 2
    max_waiting: int = 1500
    patient: float = 0.7  # share of waiting customers that stay until their turn
    max_per_order: int = 6
    habits: Mapping[str, int] = field(default_factory=lambda: HABITS)


class HttpSale:
    """One run of the load against one service."""

    def __init__(
        self,
        api: str | Gateway,
        provider_url: str,
        size: Size,
        seed: int,
        database_url: str = "",
    ) -> None:
        """api: the URL of the service, or a gateway before its replicas.

        database_url: for staff, who act by SQL; the customers of MONEY_HABITS need them.
        """
        self.history = History()
        self._staff = Staff(database_url, self.history) if database_url else None
        self.stock: dict[int, int] = {}
        self._size = size
        self._dice = random.Random(seed)
        self._api = SharedConnections(api) if isinstance(api, str) else api
        self._provider = SharedConnections(provider_url, connections=64)
        self._tasks: set[asyncio.Task[None]] = set()
        self._over = asyncio.Event()
        self._enough = False

    async def open(self) -> None:
        """Puts the items on sale."""
        size = self._size
        stocks = {"hot": size.hot_stock, "scarce": size.scarce_stock}
        stocks |= {f"ordinary-{n}": size.ordinary_stock for n in range(size.ordinary)}
        for sku, stock in stocks.items():
            terms: dict[str, Any] = {
                "sku": sku,
                "name": sku,
                "price": PRICE,
                "currency": "EUR",
                "stock": stock,
                "hold_seconds": size.hold_seconds,
                "max_waiting": size.max_waiting,
            }
            if size.max_per_order > 1:  # which releases before these limits do not know
                terms["max_per_order"] = size.max_per_order
                if sku.startswith("ordinary"):
                    terms["product"] = "ordinary"
            status, _, item = await self._api.request("POST", "/items", body=terms)
            assert status == 201, item
            self.stock[item["item_id"]] = stock
            if self._staff:
                refunds = f'{{"refund_seconds": {REFUND_SECONDS}}}'
                await self._staff.set_terms(item["item_id"], refunds)

    async def run(self) -> None:
        """Lets the customers arrive. Returns after the last arrival; some are still active then."""
        operator = asyncio.create_task(self._operate())
        began = time.monotonic()
        for plan in self._plans():
            if self._enough:
                break
            delay = began + plan.at - time.monotonic()
            if delay > 0:
                await asyncio.sleep(delay)
            self._go(self._shop(plan))
        operator.cancel()

    def let_nobody_in(self) -> None:
        """Ends `run` at the next arrival, for a sale that lasts as long as something else does."""
        self._enough = True

    async def finish(
        self, unfinished: Callable[[], dict[str, int]], timeout_seconds: float = 120
    ) -> None:
        """Resolves unknown results, closes the sale, and waits until nothing is unfinished.

        Errors: TimeoutError, with what is still unfinished.
        """
        self._over.set()
        while self._tasks:
            await asyncio.wait(self._tasks)
        await asyncio.gather(*(self._resolve(op) for op in list(self.history.unresolved())))
        for item_id in self.stock:
            closes_at = datetime.now(UTC).isoformat()
            while not await self._patch(item_id, {"closes_at": closes_at}):
                await asyncio.sleep(0.2)
        deadline = time.monotonic() + timeout_seconds
        while left := await asyncio.to_thread(unfinished):
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {timeout_seconds:g} s still unfinished: {left}")
            await asyncio.sleep(0.2)
        self._api.close()
        self._provider.close()

    def _plans(self) -> list[Plan]:
        size = self._size
        hot, scarce, *ordinary = self.stock
        at, plans = 0.0, []
        habits, weights = list(size.habits), list(size.habits.values())
        for n in range(size.customers):
            at += self._dice.expovariate(size.per_second)
            wanted = self._dice.random()
            item_id = (
                hot if wanted < 0.6 else scarce if wanted < 0.7 else self._dice.choice(ordinary)
            )
            (habit,) = self._dice.choices(habits, weights)
            plans.append(Plan(at, f"customer-{n}", item_id, habit, *self._quantity()))
            if n and self._dice.random() < 0.05:  # a customer of before comes again
                again = f"customer-{self._dice.randrange(n)}"
                plans.append(Plan(at, again, item_id, "pays", *self._quantity()))
        return plans

    def _quantity(self) -> tuple[int, int]:
        """How many units somebody asks for, and how many of them are enough."""
        if self._size.max_per_order == 1 or self._dice.random() < SINGLE:
            return 1, 1
        quantity = self._dice.randint(2, self._size.max_per_order)
        return quantity, quantity if self._dice.random() < 0.5 else self._dice.randint(1, quantity)

    def _go(self, shopping: Any) -> None:
        task = asyncio.create_task(shopping)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.result())

    async def _shop(self, plan: Plan) -> None:
        order = await self._reserve(plan)
        if order is None:
            return
        if plan.habit == "cancels":
            await self._pause(0.3)
            await self._ask_about(order, "cancel", "DELETE", plan.customer)
            return
        patient = self._dice.random() < self._size.patient
        waited = time.monotonic() + patient * self._dice.uniform(1, 4 * self._size.hold_seconds)
        while order["status"] == "waiting" and not self._over.is_set():
            if time.monotonic() > waited:
                return  # if a unit comes, the hold expires
            await self._pause(1.0)
            order = await self._ask_about(order, "read", "GET", plan.customer) or order
        if order["status"] == "reserved" and plan.habit != "never pays":
            await self._pay(plan, order)

    async def _pause(self, seconds: float) -> None:
        """Sleeps for a random time up to this, or less when the sale is over."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), self._dice.uniform(0.5, 1) * seconds)

    async def _reserve(self, plan: Plan) -> dict[str, Any] | None:
        key = f"key-{self._dice.getrandbits(64):x}"
        op = self._reserving(plan, key)
        if plan.habit == "presses twice":
            duplicate = self._reserving(plan, key)
            await asyncio.gather(self._send_reserve(op), self._send_reserve(duplicate))
            op = op if op.outcome == "ok" else duplicate
        else:
            await self._send_reserve(op, hang_up=plan.habit == "hangs up")
        for attempt in range(ATTEMPTS):
            if op.outcome != "unknown":
                break
            await self._pause(min(0.2 * 2**attempt, 2.0))
            op = self._reserving(plan, key)
            await self._send_reserve(op)
        return op.body if op.outcome == "ok" else None

    def _reserving(self, what: Plan | Op, key: str) -> Op:
        """A request like that of a plan, or like an earlier one."""
        return self.history.ask(
            "reserve",
            what.item_id,
            customer=what.customer,
            key=key,
            quantity=what.quantity,
            min_quantity=what.min_quantity,
        )

    async def _send_reserve(self, op: Op, *, hang_up: bool = False) -> None:
        headers = {"X-Customer-Id": op.customer, "Idempotency-Key": op.key}
        wanted = {"quantity": op.quantity, "min_quantity": op.min_quantity}
        with contextlib.suppress(Unanswered):
            status, _, body = await self._api.request(
                "POST",
                f"/items/{op.item_id}/orders",
                headers,
                wanted if op.quantity > 1 else None,
                hang_up=hang_up,
            )
            self.history.answer(op, status, body)

    async def _resolve(self, doubt: Op) -> None:
        while True:
            op = self._reserving(doubt, doubt.key)
            await self._send_reserve(op)
            if op.outcome != "unknown":
                return
            await asyncio.sleep(0.2)

    async def _ask_about(
        self, order: dict[str, Any], kind: str, method: str, customer: str, path: str = ""
    ) -> dict[str, Any] | None:
        op = self.history.ask(
            kind, order["item_id"], customer=customer, order=(order["item_id"], order["ticket"])
        )
        with contextlib.suppress(Unanswered):
            status, _, body = await self._api.request(
                method, f"/orders/{order['order_id']}{path}", {"X-Customer-Id": customer}
            )
            self.history.answer(op, status, body)
        return op.body if op.outcome == "ok" else None

    async def _pay(self, plan: Plan, order: dict[str, Any]) -> None:
        opened = await self._checkout(plan, order)
        if opened is None:
            return
        if plan.habit == "pays at the till" and self._staff:
            await self._staff.pay_offline(order)
            return
        if plan.habit in MOMENTS:
            left = datetime.fromisoformat(order["expires_at"]).timestamp() - time.time()
            await asyncio.sleep(max(0.0, left + self._dice.uniform(*MOMENTS[plan.habit])))
        if plan.habit == "fails first":
            await self._complete(plan, opened, "fail")
            await self._pause(0.2)
            if await self._ask_about(order, "retry_payment", "POST", plan.customer, "/payment"):
                opened = await self._checkout(plan, order, opened)
                if opened:
                    await self._complete(plan, opened, "succeed")
        else:
            await self._complete(plan, opened, "succeed")
        await self._pause(0.4)
        if plan.habit in BACK:
            await self._money_back(plan, order, opened)
        else:
            await self._ask_about(order, "read", "GET", plan.customer)

    async def _money_back(self, plan: Plan, order: dict[str, Any], url: str | None) -> None:
        """Has a paid order refunded, in the way of the customer's habit."""
        for _ in range(ATTEMPTS):
            order = await self._ask_about(order, "read", "GET", plan.customer) or order
            if order["status"] not in ("reserved", "settling"):
                break
            await asyncio.sleep(0.25)
        if order["status"] != "paid":
            return
        if plan.habit == "gives back":
            await self._ask_about(order, "cancel", "DELETE", plan.customer)
        elif plan.habit == "is refunded at the provider":
            with contextlib.suppress(Unanswered):
                path = urlsplit(url or "").path.removesuffix("/complete")
                await self._provider.request("POST", f"{path}/refund", body={})
        elif self._staff:
            back = plan.habit == "is refunded"
            await self._staff.refund(order, return_units=back)
            if self._dice.random() < AGAIN:
                await self._staff.refund(order, return_units=back)

    async def _checkout(
        self, plan: Plan, order: dict[str, Any], other_than: str | None = None
    ) -> str | None:
        """The URL at which to pay, once there is one; None if the hold ended first."""
        while True:
            payment = order["payment"] or {}
            url = payment.get("checkout_url")
            if order["status"] != "reserved":
                return None
            if url and url != other_than:
                return str(url)
            await asyncio.sleep(0.25)
            order = await self._ask_about(order, "read", "GET", plan.customer) or order
            deadline = order["expires_at"]  # none: an outage has sent the order back to the line
            if deadline and datetime.fromisoformat(deadline).timestamp() < time.time():
                return None

    async def _complete(self, plan: Plan, url: str, outcome: str) -> None:
        """Pays as the customer's browser does. The result is ignored, as it is in the ledger."""
        op = self.history.ask("pay", plan.item_id, customer=plan.customer)
        with contextlib.suppress(Unanswered):
            path = urlsplit(url).path.removesuffix("/complete") + "/complete"
            status, _, _ = await self._provider.request("POST", path, body={"outcome": outcome})
            self.history.answer(op, status, {})

    async def _operate(self) -> None:
        """Restocks and withdraws units of the last item; extends the holds of the one before."""
        *_, extended, item_id = self.stock
        for n, comes in enumerate(itertools.cycle((True, False))):
            if self._staff and n % EXTEND_EACH == EXTEND_EACH - 1:
                await self._staff.extend(extended, 1)
            units = self._dice.randint(1, 5)
            op = self.history.ask("restock" if comes else "withdraw", item_id, units=units)
            await self._patch(item_id, {"add_stock" if comes else "withdraw_stock": units}, op)
            await asyncio.sleep(self._dice.uniform(0.2, 0.6))

    async def _patch(self, item_id: int, changes: dict[str, Any], op: Op | None = None) -> bool:
        with contextlib.suppress(Unanswered):
            status, _, body = await self._api.request("PATCH", f"/items/{item_id}", body=changes)
            if op:
                self.history.answer(op, status, body)
            return status == 200
        return False
