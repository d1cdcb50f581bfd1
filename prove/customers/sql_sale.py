"""A storm at the SQL level: concurrent clients that use all the functions."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import psycopg

from flashsale.testing.calls import Connection, call_all, connect, pay, value

CLIENTS = 6

MAX_PER_ORDER = 6
"""The items have to be made with this limit, and with MAX_PER_CUSTOMER."""
MAX_PER_CUSTOMER = 8
ITEMS = [("hot", 60, 1), ("scarce", 3, 1), ("plain", 150, 2), ("calm", 400, 60)]
"""Sku, stock, hold_seconds."""


class Told(NamedTuple):
    """An answer that a client got, and how far the WAL was flushed at that time."""

    lsn: int
    order_id: int
    ticket: int
    status: str
    expires_at: datetime | None


@dataclass
class SqlSale:
    """Calls of seeded clients, which record the answers that they got."""

    url: str
    seed: int
    calls: int
    plant: Callable[[], None] | None = None  # called once, in the middle
    answers: list[Told] = field(default_factory=list)
    refused: int = 0

    def run(self) -> None:
        errors: list[BaseException] = []

        def client(number: int) -> None:
            try:
                self._client(number)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=client, args=(n,)) for n in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    def _client(self, number: int) -> None:
        dice = random.Random(f"{self.seed} {number}")
        mine: list[int] = []
        verbs = [self._reserve, self._many, self._pay, self._cancel, self._regular]
        verbs += [self._rolled_back, self._stock, self._sweep, self._work, self._notify]
        verbs += [self._till, self._refund]
        weights = [40, 4, 25, 8, 3, 4, 1, 8, 8, 3, 3, 3]
        with connect(self.url) as conn:
            for n in range(self.calls // CLIENTS):
                if self.plant and number == 0 and n == self.calls // CLIENTS // 2:
                    self.plant()
                (verb,) = dice.choices(verbs, weights)
                try:
                    orders = list(verb(conn, dice, f"{number}-{n}", mine))
                except psycopg.Error as error:
                    if not (error.sqlstate or "").startswith("RV"):
                        raise
                    self.refused += 1
                    continue
                lsn = value(conn, "select pg_current_wal_flush_lsn() - '0/0'")
                for order in orders:
                    if order.order_id is None:
                        self.refused += 1
                        continue
                    mine.append(order.order_id)
                    told = (order.order_id, order.ticket, order.status, order.expires_at)
                    self.answers.append(Told(int(lsn), *told))

    def _reserve(self, conn: Connection, dice: random.Random, name: str, _mine: list[int]) -> Any:
        key = f"key {name}" if dice.random() < 0.5 else None
        asked = (_item(dice), f"customer {name}", key, True, *_quantity(dice))
        return call_all(conn, "reserve", *asked)

    def _many(self, conn: Connection, dice: random.Random, name: str, _mine: list[int]) -> Any:
        size = dice.randint(2, 12)
        customers = [f"customer {name} {n % 9}" for n in range(size)]
        items = [_item(dice) for _ in customers]
        wanted = [list(column) for column in zip(*(_quantity(dice) for _ in items), strict=True)]
        return call_all(conn, "reserve_many", items, customers, None, None, *wanted)

    def _regular(self, conn: Connection, dice: random.Random, _name: str, _mine: list[int]) -> Any:
        """Reserves for one of a few customers who come again and again."""
        return call_all(conn, "reserve", _item(dice), f"regular {dice.randint(1, 5)}")

    def _pay(self, conn: Connection, dice: random.Random, _name: str, mine: list[int]) -> Any:
        for order in call_all(conn, "orders_by_id", dice.sample(mine[-20:], min(len(mine), 1))):
            if order.payment_id is not None:
                yield pay(conn, order)

    def _till(self, conn: Connection, dice: random.Random, _name: str, mine: list[int]) -> Any:
        order_id = dice.choice(mine[-20:]) if mine else None
        return call_all(conn, "pay_offline", order_id, f"till-{order_id}") if order_id else ()

    def _refund(self, conn: Connection, dice: random.Random, _name: str, mine: list[int]) -> Any:
        return call_all(conn, "refund_order", dice.choice(mine), "broken") if mine else ()

    def _cancel(self, conn: Connection, dice: random.Random, _name: str, mine: list[int]) -> Any:
        return call_all(conn, "cancel", dice.choice(mine)) if mine else ()

    def _rolled_back(
        self, conn: Connection, dice: random.Random, name: str, _mine: list[int]
    ) -> Any:
        with conn.transaction(force_rollback=True):
            call_all(conn, "reserve", _item(dice), f"gone {name}", None, True, *_quantity(dice))
        return ()

    def _stock(self, conn: Connection, dice: random.Random, _name: str, _mine: list[int]) -> Any:
        conn.execute(
            f"select flashsale.{dice.choice(['restock', 'withdraw'])}(%s, %s)",
            [_item(dice), dice.randint(1, 3)],
        )
        return ()

    def _sweep(self, conn: Connection, dice: random.Random, _name: str, _mine: list[int]) -> Any:
        call_all(conn, "sweep", f"sweeper {dice.randint(1, 2)}")
        return ()

    def _work(self, conn: Connection, dice: random.Random, _name: str, _mine: list[int]) -> Any:
        """Does jobs as the worker does; sometimes it dies while it holds a lease."""
        for job in call_all(conn, "take_payment_jobs", dice.randint(1, 10), 30):
            lease = (job.job_id, job.tries, job.payment_id)
            if dice.random() < 0.05:
                continue
            match job.kind:
                case "open":
                    session = f"s{job.payment_id}"  # the name that pay gives it
                    call_all(conn, "payment_opened", *lease, session, "http://pay")
                case "void":
                    call_all(conn, "payment_voided", *lease)
                case "refund":
                    call_all(conn, "payment_refunded", *lease)
        return ()

    def _notify(self, conn: Connection, dice: random.Random, _name: str, _mine: list[int]) -> Any:
        for job in call_all(conn, "take_notifications", dice.randint(1, 20), 30):
            call_all(conn, "finish_notifications", [job.job_id], [job.tries])
        return ()


def _quantity(dice: random.Random) -> tuple[int, int]:
    """How many units are asked for, and how many of them are enough."""
    quantity = 1 if dice.random() < 0.6 else dice.randint(2, MAX_PER_ORDER)
    return quantity, quantity if dice.random() < 0.5 else dice.randint(1, quantity)


def _item(dice: random.Random) -> int:
    return dice.choices(range(1, len(ITEMS) + 1), [6, 2, 2, 2])[0]
