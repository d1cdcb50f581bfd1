"""A small Python model of the line: what flashsale must do, one call after the other.

It follows the design and not the SQL. It has plain objects, and no counter that could disagree with
them, except `gaps`, on which the length of the line depends and which sweeps update a little later.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

OPEN = ("waiting", "reserved", "settling")
SETTLE = timedelta(seconds=2)
FOREVER = 2**31 - 1


@dataclass(eq=False)
class ModelPayment:
    """An attempt to pay."""

    amount: int
    requested_at: datetime
    status: str = "requested"
    opened_at: datetime | None = None
    offline: bool = False


@dataclass(eq=False)
class ModelOrder:
    """A customer's claim on units, a part of one, or a hole in the line.

    An order has the first of its tickets; its parts have the others. least: so many units are
    enough. served_at: when the line reached its first ticket, which was not enough.
    """

    ticket: int
    customer: str | None
    status: str
    quantity: int = 1
    least: int = 1
    units: int | None = None
    served_at: datetime | None = None
    paid_at: datetime | None = None
    head: ModelOrder | None = field(default=None, repr=False)
    parts: list[ModelOrder] = field(default_factory=list)
    reserved_at: datetime | None = None
    expires_at: datetime | None = None
    ended_at: datetime | None = None
    settle_until: datetime | None = None
    recycled: bool = False
    payments: list[ModelPayment] = field(default_factory=list)

    @property
    def rows(self) -> list[ModelOrder]:
        """The order and its parts, by ticket."""
        return [self, *self.parts]


@dataclass(frozen=True)
class Request:
    """A request for units. least: None if all of the quantity are wanted."""

    customer: str
    key: str | None = None
    wait: bool = True
    quantity: int = 1
    least: int | None = None

    @property
    def enough(self) -> int:
        return self.quantity if self.least is None else self.least

    @property
    def bound(self) -> tuple[bool, int, int]:
        """What belongs to its key."""
        return self.wait, self.quantity, self.enough


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
    max_per_order: int = 1
    max_per_customer: int | None = None
    variants: list[ModelItem] = field(default_factory=list, repr=False)
    """All items of the product, in the order in which they were created."""
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
    keys: dict[tuple[str, str], tuple[ModelOrder, tuple[bool, int, int]]] = field(
        default_factory=dict
    )
    jobs: list[tuple[str, ModelPayment | ModelOrder]] = field(default_factory=list)

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
        """The status that a customer sees: a hold past its deadline is over, or settles."""
        if not self.overdue(order):
            return order.status
        return "settling" if self.payable(order) else "expired"

    def payable(self, order: ModelOrder, but: ModelPayment | None = None) -> bool:
        """Whether a session of the order may have been paid before its deadline."""
        assert order.expires_at is not None
        return any(
            p.status == "open" and p.opened_at is not None and p.opened_at < order.expires_at
            for p in order.payments
            if p is not but
        )

    def overdue(self, order: ModelOrder) -> bool:
        return (
            order.status == "reserved"
            and order.expires_at is not None
            and order.expires_at <= self.now
        )

    def position(self, order: ModelOrder) -> int | None:
        """The order's position: how many wait up to it."""
        if order.status != "waiting":
            return None
        return sum(o.status == "waiting" and o.ticket <= order.ticket for o in self.orders.values())

    def count(self, *statuses: str) -> int:
        """How many tickets have an order in one of these states: each is a unit."""
        return sum(o.status in statuses for o in self.orders.values())

    def of(self, customer: str, *statuses: str) -> list[tuple[ModelItem, ModelOrder]]:
        """The customer's orders of the product in these states, the last one paid at the end."""
        return sorted(
            (
                (shop, o)
                for shop in self.variants or [self]
                for o in shop.orders.values()
                if o.customer == customer and o.status in statuses
            ),
            key=lambda found: (
                found[1].paid_at or datetime.min.replace(tzinfo=UTC),
                (self.variants or [self]).index(found[0]),
                found[1].ticket,
            ),
        )

    @property
    def limit(self) -> int:
        return self.max_per_customer or self.max_per_order

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
                        self.keys.setdefault((ask.customer, ask.key), (order, ask.bound))
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
                self.shop_of(order).expire_hold(order)
            last = {n: self._ticket_limit(requests[n].wait) for n in new}
            for n in new:
                answers[n] = self._take_ticket(requests[n], last[n])
            pending = again
        return answers

    def _verdict(self, ask: Request) -> tuple[str, ModelOrder | None]:
        if ask.key is not None and (ask.customer, ask.key) in self.keys:
            order, bound = self.keys[ask.customer, ask.key]
            return ("existing", order) if bound == ask.bound else ("key_reused", None)
        for shop, order in self.of(ask.customer, *OPEN):
            if self.overdue(order):
                return "overdue", order
            return ("existing" if shop is self else "has_other_order"), order
        paid = [order for _, order in self.of(ask.customer, "paid")]
        had = sum(order.units or 1 for order in paid)
        if had >= self.limit:
            return "existing", paid[-1]
        if self.state != "open":
            return self.state, None
        if ask.quantity > self.max_per_order or had + ask.quantity > self.limit:
            return "too_many", None
        last = self.issued + (ask.quantity if ask.wait else ask.enough)
        return ("sold_out" if last > self._ticket_limit(ask.wait) else "new"), None

    def shop_of(self, order: ModelOrder) -> ModelItem:
        """The variant that an order is for."""
        (shop,) = [it for it in self.variants or [self] if order in it.orders.values()]
        return shop

    def _ticket_limit(self, wait: bool) -> int:
        if not wait:
            return self.now_serving
        if self.max_waiting is None:
            return FOREVER
        return self.now_serving + self.gaps + self.max_waiting

    def _take_ticket(self, ask: Request, last: int) -> tuple[str, ModelOrder | None]:
        first = self.issued + 1
        self.issued += ask.quantity
        if first - 1 + (ask.quantity if ask.wait else ask.enough) > last:
            return "sold_out", None  # requests in front took the rest: the tickets are holes
        order = ModelOrder(first, ask.customer, "waiting", ask.quantity, ask.enough)
        order.parts = [
            ModelOrder(ticket, None, "waiting", head=order)
            for ticket in range(first + 1, self.issued + 1)
        ]
        self.orders |= {row.ticket: row for row in order.rows}
        if self._has_enough(order):
            self.tallied_gaps += self._grant(order)
        elif first <= self.now_serving:
            order.served_at = self.now
        if ask.key is not None:
            self.keys[ask.customer, ask.key] = (order, ask.bound)
        return order.status, order

    def _has_enough(self, order: ModelOrder) -> bool:
        return order.rows[order.least - 1].ticket <= self.now_serving

    def roll_back(self, ask: Request) -> None:
        """Rolls back: only the ticket is gone."""
        other = copy.deepcopy(self)
        other.reserve_many([ask])
        self.issued = other.issued

    def _grant(self, order: ModelOrder) -> int:
        """Grants the units that the line has reached; returns how many tickets are given up."""
        given_up = 0
        for row in order.rows:
            if row.ticket <= self.now_serving:
                row.status, row.reserved_at = "reserved", self.now
            else:
                row.status, row.ended_at = "unserved", self.now
                given_up += 1
        order.units = order.quantity - given_up
        order.expires_at = self.now + self.hold
        self._charge(order)
        return given_up

    def _charge(self, order: ModelOrder) -> None:
        order.payments.append(ModelPayment(self.price * (order.units or 1), self.now))
        self.jobs.append(("open", order.payments[-1]))

    def _become(self, order: ModelOrder, status: str) -> None:
        """The next state of an order and its parts, without those that it was granted without."""
        for row in order.rows:
            if row is order or row.ended_at is None:
                row.status = status

    # The end of an order

    def _end(self, order: ModelOrder, status: str) -> None:
        if order.reserved_at is not None and order.status != "settling":
            self.jobs.append(("void", order))  # it finds out what there is to void
        order.settle_until = None
        for row in order.rows:
            if row.ended_at is None:
                row.status, row.ended_at = status, self.now

    def expire_hold(self, order: ModelOrder) -> bool:
        """What a sweep does with a hold that is due; returns whether it has expired."""
        if order.status == "settling":
            assert order.settle_until is not None
            if order.settle_until > self.now:
                return False
        elif not self.overdue(order):
            return False
        elif self.payable(order):
            self._become(order, "settling")
            order.settle_until = self.now + SETTLE
            self.jobs.append(("void", order))
            return False
        self._end(order, "expired")
        return True

    def _end_settling(self, order: ModelOrder, but: ModelPayment | None = None) -> None:
        if order.status == "settling" and not self.payable(order, but):
            self._end(order, "expired")

    def cancel(self, order: ModelOrder) -> str:
        if order.status == "paid":
            raise RefusedError("RV202")
        if self.shown(order) == "settling":
            return "settling"
        if order.ended_at is not None or self.overdue(order):
            return "already_ended"
        self.tallied_gaps += order.quantity if order.status == "waiting" else 0
        self._end(order, "cancelled")
        return "cancelled"

    def pay(self, order: ModelOrder, payment: ModelPayment, amount: int, captured: datetime) -> str:
        if payment.status in ("succeeded", "refund_due", "refunded"):
            return "already_paid" if payment.status == "succeeded" else "refund_due"
        if not (payment.opened_at or payment.requested_at) <= captured <= self.now:
            captured = self.now
        if amount == payment.amount and order.status not in ("paid", "refunded", "cancelled"):
            assert order.expires_at is not None
            if self.shown(order) in ("reserved", "settling") and captured < order.expires_at:
                self._become(order, "paid")
                order.settle_until, payment.status = None, "succeeded"
                order.paid_at = max(captured, order.reserved_at or captured)
                if len(order.payments) > 1:
                    self.jobs.append(("void", order))
                return "paid"
            if self.keep_if_free and self._buy_late(order, payment):
                return "paid"
        payment.status, payment.amount = "refund_due", amount
        self.jobs.append(("refund", payment))
        self._end_settling(order)
        return "refund_due"

    def _buy_late(self, order: ModelOrder, payment: ModelPayment) -> bool:
        units = order.units or 1
        free = self.now_serving - self.issued
        if self.state != "open" or free < units or self.count("waiting"):
            return False
        self.expire_hold(order)
        self._end_settling(order, payment)
        if order.ended_at is None:
            return False  # another session may have been paid in time
        assert order.customer is not None
        had = sum(it.units or 1 for _, it in self.of(order.customer, "paid"))
        is_refused = self.of(order.customer, *OPEN) or had + units > self.limit
        if is_refused and (self.limit > 1 or self.variants):
            return False
        first = self.issued + 1
        self.issued += units
        if is_refused:
            return False  # and the ticket is a hole
        new = ModelOrder(first, order.customer, "paid", units, units, units, paid_at=self.now)
        new.parts = [
            ModelOrder(ticket, None, "paid", reserved_at=self.now, head=new)
            for ticket in range(first + 1, self.issued + 1)
        ]
        new.reserved_at, new.expires_at = self.now, self.now + self.hold
        new.payments = [payment]
        order.payments.remove(payment)
        self.orders |= {row.ticket: row for row in new.rows}
        payment.status = "succeeded"
        return True

    def pay_offline(self, order: ModelOrder) -> str:
        if self.shown(order) != "reserved":
            raise RefusedError("RV203")
        self._become(order, "paid")
        order.paid_at = self.now
        amount = self.price * (order.units or 1)
        order.payments.append(ModelPayment(amount, self.now, "succeeded", offline=True))
        self.jobs.append(("void", order))
        return "paid"

    def refund(self, order: ModelOrder, return_units: bool) -> str:
        if order.status == "refunded":
            return "already_refunded"
        if order.status != "paid":
            raise RefusedError("RV207")
        if not return_units:
            self.withdrawing = min(self.stock, self.withdrawing + (order.units or 1))
        (payment,) = [p for p in order.payments if p.status == "succeeded"]
        for row in order.rows:
            if row.ended_at is None:
                row.status, row.ended_at = "refunded", self.now
        payment.status = "refunded" if payment.offline else "refund_due"
        if not payment.offline:
            self.jobs.append(("refund", payment))
        return "refunded"

    def request_payment(self, order: ModelOrder) -> str:
        if self.shown(order) != "reserved":
            raise RefusedError("RV203")
        if any(p.status in ("requested", "open") for p in order.payments):
            return "existing"
        self._charge(order)
        return "requested"

    def fail(self, order: ModelOrder, payment: ModelPayment) -> str:
        if payment.status not in ("requested", "open"):
            return "ignored"
        payment.status = "failed"
        self._end_settling(order)
        return "failed"

    def work(self) -> None:
        """The worker takes every job, and all calls of the provider succeed."""
        jobs, self.jobs = self.jobs, []
        order_of = {p: o for o in self.orders.values() for p in o.payments}
        before = {p: p.status for p in order_of}
        for kind, about in jobs:
            if isinstance(about, ModelOrder):
                for payment in about.payments:
                    if before[payment] in ("open", "failed"):
                        payment.status = "voided"
                self._end_settling(about)
            elif kind == "open" and before[about] == "requested":
                order = order_of[about]
                in_time = order.status == "reserved" and not self.overdue(order)
                about.status = "open" if in_time else "voided"
                about.opened_at = self.now if in_time else None
            elif kind == "refund" and before[about] == "refund_due":
                about.status = "refunded"

    # Moving the line

    def expire(self) -> int:
        return sum([self.expire_hold(o) for o in list(self.orders.values()) if o.head is None])

    def promote(self) -> tuple[int, int, int]:
        """Returns how many were recycled, promoted and unserved."""
        unserved = recycled = promoted = 0
        if self.state == "closed":
            for order in self._line("waiting"):
                self._end(order, "unserved")
                self.gaps += order.quantity
                unserved += 1
        recycled += self._recycle()
        if self.state == "open":
            for order in self._line("waiting"):
                if self._has_enough(order):
                    self.gaps += self._grant(order)
                    promoted += 1
                elif order.ticket <= self.now_serving:
                    order.served_at = order.served_at or self.now
                    if order.served_at + self.hold <= self.now:
                        self._end(order, "unserved")
                        self.gaps += order.quantity
                        unserved += 1
        return recycled, promoted, unserved

    def _recycle(self) -> int:
        recycled = 0
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
        return recycled

    def _line(self, status: str) -> list[ModelOrder]:
        return sorted(
            (o for o in self.orders.values() if o.status == status and o.head is None),
            key=lambda o: o.ticket,
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
