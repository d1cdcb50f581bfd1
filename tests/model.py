"""A small Python model of the line: what flashsale must do, one call after the other.

It follows the design and not the SQL. It has plain objects, and no counter that could disagree with
them, except `gaps`, on which the length of the line depends and which sweeps update a little later.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from datetime import datetime, timedelta

LIVE = ("waiting", "reserved", "paid")
FOREVER = 2**31 - 1


@dataclass(eq=False)
class ModelPayment:
    """An attempt to pay."""

    amount: int
    status: str = "requested"


@dataclass(eq=False)
class ModelOrder:
    """A customer's claim on a unit, or a hole in the line."""

    ticket: int
    customer: str | None
    status: str
    reserved_at: datetime | None = None
    expires_at: datetime | None = None
    ended_at: datetime | None = None
    recycled: bool = False
    payments: list[ModelPayment] = field(default_factory=list)


@dataclass(frozen=True)
class Request:
    """A request for a unit."""

    customer: str
    key: str | None = None
    wait: bool = True


@dataclass
class RefusedError(Exception):
    """The call is an error with this SQLSTATE."""

    sqlstate: str


@dataclass
class ModelItem:
    """An item and its line, with the expected behaviour in the simplest form."""

    now: datetime
    stock: int
    price: int
    hold: timedelta
    max_waiting: int | None = None
    keep_if_free: bool = False
    opens_at: datetime | None = None
    closes_at: datetime | None = None
    paused: bool = False
    forfeited: int = 0
    withdrawing: int = 0
    issued: int = 0
    gaps: int = 0
    tallied_gaps: int = 0
    orders: dict[int, ModelOrder] = field(default_factory=dict)
    withdrawn: set[int] = field(default_factory=set)
    keys: dict[tuple[str, str], ModelOrder] = field(default_factory=dict)
    jobs: list[tuple[str, ModelPayment]] = field(default_factory=list)

    @property
    def now_serving(self) -> int:
        return self.stock + self.forfeited

    @property
    def state(self) -> str:
        if self.closes_at is not None and self.closes_at <= self.now:
            return "closed"
        if self.paused:
            return "paused"
        return "not_open" if self.opens_at is not None and self.opens_at > self.now else "open"

    def shown(self, order: ModelOrder) -> str:
        """The status that a customer sees: a hold past its deadline is over."""
        return "expired" if self.overdue(order) else order.status

    def overdue(self, order: ModelOrder) -> bool:
        return (
            order.status == "reserved"
            and order.expires_at is not None
            and order.expires_at <= self.now
        )

    def position(self, order: ModelOrder) -> int | None:
        """The order's position: how many tickets are served up to it, at least 1."""
        return max(1, order.ticket - self.now_serving) if order.status == "waiting" else None

    def count(self, *statuses: str) -> int:
        return sum(o.status in statuses for o in self.orders.values())

    def live(self, customer: str) -> ModelOrder | None:
        found = [o for o in self.orders.values() if o.customer == customer and o.status in LIVE]
        assert len(found) <= 1
        return found[0] if found else None

    # Joining the line

    def reserve_many(self, requests: list[Request]) -> list[tuple[str, ModelOrder | None]]:
        """Handles a batch. A round looks up all requests first, and takes tickets after that."""
        answers: list[tuple[str, ModelOrder | None]] = [("", None)] * len(requests)
        pending = list(range(len(requests)))
        while pending:
            verdicts = {n: self._verdict(requests[n]) for n in pending}
            overdue = [o for verdict, o in verdicts.values() if verdict == "overdue" and o]
            new: list[int] = []
            again: list[int] = []
            for n in pending:
                verdict, order = verdicts[n]
                ask = requests[n]
                unkeyed = ask.key is not None and (ask.customer, ask.key) not in self.keys
                waits = verdict == "new" or (verdict == "existing" and unkeyed)
                if verdict == "overdue" or (overdue and waits):
                    again.append(n)
                elif verdict == "existing" and order:
                    answers[n] = ("existing", order)
                    if ask.key is not None:
                        self.keys.setdefault((ask.customer, ask.key), order)
                elif verdict != "new":
                    answers[n] = (verdict, None)
                elif any(
                    requests[m].customer == ask.customer and verdicts[m][0] == "new"
                    for m in pending
                    if m < n
                ):
                    again.append(n)
                else:
                    new.append(n)
            for order in overdue:
                self._expire(order)
            last = {n: self._ticket_limit(requests[n].wait) for n in new}
            for n in new:
                answers[n] = self._take_ticket(requests[n], last[n])
            pending = again
        return answers

    def _verdict(self, ask: Request) -> tuple[str, ModelOrder | None]:
        if ask.key is not None and (ask.customer, ask.key) in self.keys:
            return "existing", self.keys[ask.customer, ask.key]
        order = self.live(ask.customer)
        if order:
            return ("overdue" if self.overdue(order) else "existing"), order
        if self.state != "open":
            return self.state, None
        return ("sold_out" if self.issued >= self._ticket_limit(ask.wait) else "new"), None

    def _ticket_limit(self, wait: bool) -> int:
        if not wait:
            return self.now_serving
        if self.max_waiting is None:
            return FOREVER
        return self.now_serving + self.gaps + self.max_waiting

    def _take_ticket(self, ask: Request, last: int) -> tuple[str, ModelOrder | None]:
        self.issued += 1
        if self.issued > last:
            return "sold_out", None  # requests in front took the rest: the ticket is a hole
        order = ModelOrder(self.issued, ask.customer, "waiting")
        self.orders[order.ticket] = order
        if order.ticket <= self.now_serving:
            self._grant(order)
        if ask.key is not None:
            self.keys[ask.customer, ask.key] = order
        return order.status, order

    def roll_back(self, ask: Request) -> None:
        """Rolls back: only the ticket is gone."""
        other = copy.deepcopy(self)
        other.reserve_many([ask])
        self.issued = other.issued

    def _grant(self, order: ModelOrder) -> None:
        order.status, order.reserved_at = "reserved", self.now
        order.expires_at = self.now + self.hold
        self._charge(order)

    def _charge(self, order: ModelOrder) -> None:
        order.payments.append(ModelPayment(self.price))
        self.jobs.append(("open", order.payments[-1]))

    # The end of an order

    def _end(self, order: ModelOrder, status: str) -> None:
        order.status, order.ended_at = status, self.now
        # A first attempt that has not been begun has nothing to void.
        self.jobs += [
            ("void", p)
            for n, p in enumerate(order.payments)
            if p.status == "open" or (n and p.status == "requested")
        ]

    def _expire(self, order: ModelOrder) -> None:
        if self.overdue(order):
            self._end(order, "expired")

    def cancel(self, order: ModelOrder) -> str:
        if order.status == "paid":
            raise RefusedError("RV202")
        if order.ended_at is not None or self.overdue(order):
            return "already_ended"
        self.tallied_gaps += order.status == "waiting"
        self._end(order, "cancelled")
        return "cancelled"

    def pay(self, order: ModelOrder, payment: ModelPayment, amount: int) -> str:
        if payment.status in ("succeeded", "refund_due", "refunded"):
            return "already_paid" if payment.status == "succeeded" else "refund_due"
        late = order.status != "reserved" or self.overdue(order)
        if amount == payment.amount and payment is order.payments[-1] and order.status != "paid":
            if not late:
                order.status, payment.status = "paid", "succeeded"
                return "paid"
            if self.keep_if_free and self._buy_late(order, payment):
                return "paid"
        payment.status, payment.amount = "refund_due", amount
        self.jobs.append(("refund", payment))
        return "refund_due"

    def _buy_late(self, order: ModelOrder, payment: ModelPayment) -> bool:
        if self.state != "open" or self.issued >= self.now_serving or self.count("waiting"):
            return False
        if self.overdue(order) and payment is order.payments[0] and payment.status == "requested":
            # pay has inserted the attempt's row. The void is obsolete, and the worker drops it.
            self.jobs.append(("void", payment))
        self._expire(order)
        self.issued += 1
        assert order.customer is not None
        if self.live(order.customer):
            return False  # and the ticket is a hole
        new = ModelOrder(self.issued, order.customer, "paid", self.now, self.now + self.hold)
        new.payments = [payment]
        order.payments.remove(payment)
        self.orders[new.ticket] = new
        payment.status = "succeeded"
        return True

    def request_payment(self, order: ModelOrder) -> str:
        if self.shown(order) != "reserved":
            raise RefusedError("RV203")
        if any(p.status in ("requested", "open") for p in order.payments):
            return "existing"
        self._charge(order)
        return "requested"

    def fail(self, payment: ModelPayment) -> str:
        if payment.status not in ("requested", "open"):
            return "ignored"
        payment.status = "failed"
        return "failed"

    def work(self) -> None:
        """The worker takes every job, and all calls of the provider succeed."""
        jobs, self.jobs = self.jobs, []
        order_of = {p: o for o in self.orders.values() for p in o.payments}
        before = {p: p.status for _, p in jobs}
        for kind, payment in jobs:
            if kind == "open" and before[payment] == "requested":
                order = order_of[payment]
                in_time = order.status == "reserved" and not self.overdue(order)
                payment.status = "open" if in_time else "voided"
            elif kind == "void" and before[payment] == "open":
                payment.status = "voided"
            elif kind == "refund" and before[payment] == "refund_due":
                payment.status = "refunded"

    # Moving the line

    def expire(self) -> int:
        due = [o for o in self.orders.values() if self.overdue(o)]
        for order in due:
            self._expire(order)
        return len(due)

    def promote(self) -> tuple[int, int, int]:
        """Returns how many were recycled, promoted and unserved."""
        unserved = recycled = promoted = 0
        if self.state == "closed":
            for order in self._line("waiting"):
                self._end(order, "unserved")
                self.gaps += 1
                unserved += 1
        while passed := [
            o
            for o in self.orders.values()
            if o.ticket <= self.now_serving and o.ended_at is not None and not o.recycled
        ]:
            for order in passed:
                order.recycled = True
                self.gaps -= order.reserved_at is None
                self.forfeited += 1
                recycled += 1
                if self.withdrawing:
                    self.withdrawing -= 1
                    self.stock -= 1
        if self.state == "open":
            for order in self._line("waiting"):
                if order.ticket <= self.now_serving:
                    self._grant(order)
                    promoted += 1
        return recycled, promoted, unserved

    def _line(self, status: str) -> list[ModelOrder]:
        return sorted(
            (o for o in self.orders.values() if o.status == status), key=lambda o: o.ticket
        )

    def settle(self) -> None:
        """Sweeps until nothing changes, so that holes are filled too."""
        self.expire()
        self.gaps += self.tallied_gaps
        self.tallied_gaps = 0
        for ticket in range(1, self.issued + 1):
            if ticket not in self.orders and ticket not in self.withdrawn:
                self.orders[ticket] = ModelOrder(ticket, None, "void", ended_at=self.now)
                self.gaps += 1
        self.promote()

    # Operators

    def restock(self, units: int) -> None:
        settled = min(units, self.withdrawing)
        self.withdrawing -= settled
        self.stock += units - settled

    def withdraw(self, units: int) -> None:
        if units > self.stock - self.withdrawing - self.count("paid"):
            raise RefusedError("RV204")
        free = max(0, min(units, self.now_serving - self.issued))
        for _ in range(free):
            self.issued += 1
            self.withdrawn.add(self.issued)
        self.stock -= free
        self.forfeited += free
        self.withdrawing += units - free

    def open(self) -> None:
        self.opens_at, self.closes_at, self.paused = self.now, None, False

    def close(self) -> None:
        self.closes_at = min(self.closes_at or self.now, self.now)
        if self.opens_at is not None and self.opens_at >= self.now:
            self.opens_at = None
