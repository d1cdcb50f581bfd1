"""The evidence of a run: its history, the tables at its end, and the provider's ledger.

It shares no code with the service: the tables are read with statements of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from psycopg.rows import namedtuple_row

from prove.judge.history import History

Place = tuple[int, int]
"""An order's identity: item_id and ticket."""

LIVE = ("entered", "waiting", "reserved", "settling", "paid")
SOLD = ("paid", "refunded")
"""Orders that were bought, whether or not the money went back since."""
FINAL = ("paid", "refunded", "expired", "cancelled", "unserved", "void")
NEXT = {
    "entered": {"waiting", "reserved", "settling", *SOLD, "expired", "cancelled", "unserved"},
    "waiting": {"reserved", "settling", *SOLD, "expired", "cancelled", "unserved"},
    # Back to waiting: nobody could pay, because the provider was down.
    "reserved": {"waiting", "settling", *SOLD, "expired", "cancelled", "unserved"},
    "settling": {*SOLD, "expired"},
    "paid": {"refunded"},
}
"""What an order that was seen in one state may be seen in later."""
REFUNDS = ("staff", "customer", "provider")
"""The reasons for which a paid order is refunded; all others are of money that bought nothing."""
FOREVER = float("inf")
BEHIND_SECONDS = 10.0
"""For so long the backlog that an outage of the payment provider leaves is an excuse."""
SAME = 1e-5
"""Times of one event that are read in two ways differ by less than these seconds."""


class OrderRow(NamedTuple):
    """A row of orders; times in Unix seconds."""

    item_id: int
    ticket: int
    customer: str | None
    status: str
    created_at: float
    reserved_at: float | None
    expires_at: float | None
    paid_at: float | None
    ended_at: float | None
    recycled: bool
    late: Place | None = None
    """The order that this one's late money has bought."""
    may_settle: bool = False
    """A session was open before the deadline, so the unit may be kept until it has settled."""
    lost_holds: tuple[tuple[float, float], ...] = ()
    """Earlier holds, from and to, which an outage of the provider has ended."""
    quantity: int = 1
    min_quantity: int = 1
    units: int | None = None
    """Units granted, once it held any."""
    head: int | None = None
    """Of a part: the ticket that names its order."""
    product_id: int | None = None
    may_buy_again: bool = False
    """Paid, and the limit has let a later request of its customer past it."""
    part_served_at: float | None = None
    """Of a group that waited: when the line reached its first ticket."""

    @property
    def place(self) -> Place:
        return self.item_id, self.ticket

    @property
    def is_void(self) -> bool:
        """Whether nobody ever had this ticket."""
        return self.customer is None and self.head is None

    @property
    def product(self) -> int:
        """What the limit of the customer is counted over."""
        return self.product_id or self.item_id

    @property
    def is_order(self) -> bool:
        """Whether it is neither void nor a part of another order."""
        return self.customer is not None

    @property
    def released_at(self) -> float:
        """When its unit was free again. A deadline ends a hold, whether or not it was marked.

        Only if there was a session, the hold settles first.
        """
        if self.status == "paid":
            return FOREVER
        if self.status == "refunded" or (self.status == "expired" and self.may_settle):
            return self.ended_at or FOREVER
        return min(self.expires_at or FOREVER, self.ended_at or FOREVER)

    @property
    def holds(self) -> list[tuple[float, float]]:
        """From when to when it held its unit."""
        holds = list(self.lost_holds)
        if self.reserved_at is not None and self.expires_at is not None:
            holds.append((self.reserved_at, self.released_at))
        return holds

    @property
    def waits(self) -> list[tuple[float, float]]:
        """From when to when it waited for a unit."""
        waits, begin = [], self.created_at
        for start, end in self.holds:
            if start - begin > SAME:
                waits.append((begin, start))
            begin = end
        if self.expires_at is None:
            waits.append((begin, self.ended_at or FOREVER))
        # A part that was given up as soon as it was taken has never waited.
        return [] if self.is_void else [(since, gone) for since, gone in waits if gone > since]


class ItemRow(NamedTuple):
    """A row of items; times in Unix seconds."""

    item_id: int
    stock: int
    hold_seconds: int
    now_serving: int
    withdrawing: int
    closes_at: float | None
    settle_seconds: int = 2
    refund_seconds: int | None = None
    price: int | None = None
    max_per_order: int = 1
    max_per_customer: int | None = None
    product_id: int | None = None

    @property
    def limit(self) -> int:
        """Units that a customer may have of the item and its variants."""
        return self.max_per_customer or self.max_per_order


class Group(NamedTuple):
    """An order and its parts: all of its tickets, in their order."""

    order: OrderRow
    parts: list[OrderRow]

    @property
    def granted(self) -> list[OrderRow]:
        """The tickets that hold a unit, or have held one."""
        return [row for row in (self.order, *self.parts) if row.reserved_at is not None]

    @property
    def given_up(self) -> list[OrderRow]:
        """The parts that it was granted without."""
        return [part for part in self.parts if part.reserved_at is None and self.granted]

    @property
    def need(self) -> int:
        """The ticket with which it has enough: it is to be granted when the line reaches that."""
        tickets = [row.ticket for row in (self.order, *self.parts)]
        return tickets[min(self.order.min_quantity, len(tickets)) - 1]


class PaymentRow(NamedTuple):
    """A row of payments, with the place of its order; times in Unix seconds."""

    payment_id: int
    item_id: int | None
    ticket: int | None
    amount: int
    status: str
    session_id: str | None
    refund_reason: str | None = None
    reference: str | None = None
    opened_at: float | None = None
    ended_at: float | None = None
    refused_at: float | None = None

    @property
    def place(self) -> Place:
        return self.item_id or 0, self.ticket or 0

    @property
    def bought(self) -> bool:
        """Whether its money has bought the order, which may have been refunded since."""
        return self.status == "succeeded" or self.refund_reason in REFUNDS


class Act(NamedTuple):
    """A row of history: what staff did, and when."""

    at: float
    action: str
    item_id: int | None
    order_id: int | None
    seconds: int | None = None
    """By how much deadlines were extended."""


@dataclass(frozen=True)
class FinalTables:
    """The contents of the tables at the end of the run, when nothing was due any more."""

    orders: list[OrderRow]
    items: dict[int, ItemRow]
    payments: list[PaymentRow]
    keys: dict[tuple[str, int, str], Place]
    jobs: int
    dead_letters: int
    violations: list[str]
    now: float
    acts: list[Act] = field(default_factory=list)

    @classmethod
    def read(cls, url: str) -> FinalTables:
        """url: of a superuser or the tables' owner."""
        with psycopg.connect(url) as conn, conn.cursor(row_factory=namedtuple_row) as cursor:
            cursor.execute("set transaction isolation level repeatable read, read only")

            def rows(query: str) -> list[Any]:
                return cursor.execute(query.encode()).fetchall()

            def tables(query: str) -> list[dict[str, Any]]:
                return [
                    {name: _plain(it) for name, it in row._asdict().items()} for row in rows(query)
                ]

            return cls(
                orders=joined([_order(**row) for row in tables(_ORDERS)]),
                items={
                    row["item_id"]: ItemRow(**row)
                    for row in tables(
                        "select item_id, stock, hold_seconds, now_serving, withdrawing, closes_at,"
                        " settle_seconds, refund_seconds, price, max_per_order, max_per_customer,"
                        " product_id from flashsale_data.items"
                    )
                },
                payments=[PaymentRow(**row) for row in tables(_PAYMENTS)],
                keys={
                    (row.customer_id, row.item_id, row.idempotency_key): (row.item_id, row.ticket)
                    for row in rows(
                        "select k.customer_id, k.item_id, k.idempotency_key, o.ticket"
                        " from flashsale_data.order_keys k"
                        " left join flashsale_data.orders o using (order_id)"
                    )
                },
                jobs=rows(
                    "select (select count(*) from pgmq.q_payments)"
                    " + (select count(*) from pgmq.q_notifications) as n"
                )[0].n,
                dead_letters=rows("select count(*) as n from flashsale_data.dead_letters")[0].n,
                violations=[str(tuple(row)) for row in rows("select * from flashsale.violation")],
                now=rows("select extract(epoch from clock_timestamp())::float8 as n")[0].n,
                acts=[
                    Act(**row)
                    for row in tables(
                        "select at, action, item_id, order_id, (after ->> 'seconds')::int as"
                        " seconds from flashsale_data.history order by history_id"
                    )
                ],
            )


_ORDERS = """
select
  o.item_id, o.ticket, o.customer_id as customer, o.status::text, o.created_at, o.reserved_at,
  o.expires_at, o.paid_at, o.ended_at, o.recycled, o.late_order_id as late,
  o.late_order_id is not null or exists (
    select from flashsale_data.payments p
    where p.order_id = o.order_id and p.opened_at < o.expires_at) as may_settle,
  array(
    -- An attempt that nobody had tried to open is voided at the deadline, and does not tell it.
    -- One that took the place of another when staff extended the hold began later than the hold.
    select array[
      (
        select max(f.requested_at)
        from flashsale_data.payments f
        where f.order_id = p.order_id and f.requested_at <= p.requested_at and (
          select q.asked_until
          from flashsale_data.payments q
          where q.order_id = f.order_id and q.requested_at < f.requested_at
            and q.reference is null
          order by q.requested_at desc
          limit 1) is null),
      coalesce(p.expires_at, p.ended_at)]
    from flashsale_data.payments p
    where p.order_id = o.order_id and p.reference is null and p.requested_at >= o.created_at
      and (p.requested_at < o.reserved_at or o.expires_at is null)
      and (p.expires_at is not null or p.status = 'voided' and p.session_id is null)
    order by p.requested_at) as lost_holds,
  coalesce(o.quantity, 1) as quantity, coalesce(o.min_quantity, o.quantity, 1) as min_quantity,
  coalesce(o.units, case when o.reserved_at is not null then 1 end) as units, o.head_id as head,
  o.product_id, coalesce(o.may_buy_again, false) as may_buy_again, o.part_served_at
from flashsale_data.orders o
union all
select
  w.item_id, t.ticket, null, 'void', w.withdrawn_at, null, null, null, w.withdrawn_at, true, null,
  false, '{}', 1, 1, null, null, null, false, null
from flashsale_data.withdrawn_tickets w, generate_series(w.first_ticket, w.last_ticket) t (ticket)
order by item_id, ticket
"""
_PAYMENTS = """
select
  p.payment_id, o.item_id, o.ticket, p.amount, p.status::text, p.session_id, p.refund_reason,
  p.reference, p.opened_at, p.ended_at, p.refused_at
from flashsale_data.payments p
left join flashsale_data.orders o using (order_id)
order by p.payment_id
"""


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_plain(it) for it in value)
    return value.timestamp() if isinstance(value, datetime) else value


def _order(late: int | None, head: int | None, **row: Any) -> OrderRow:
    return OrderRow(
        **row,
        late=None if late is None else place_of(late),
        head=None if head is None else place_of(head)[1],
    )


def joined(orders: list[OrderRow]) -> list[OrderRow]:
    """Gives the parts that were granted with their order its times, which only the order has."""
    heads = {order.place: order for order in orders if order.is_order}
    for n, part in enumerate(orders):
        head = heads.get((part.item_id, part.head or 0))
        if head is not None and part.reserved_at is not None:
            orders[n] = part._replace(
                reserved_at=head.reserved_at,
                expires_at=head.expires_at,
                paid_at=head.paid_at,
                may_settle=head.may_settle,
                lost_holds=head.lost_holds,
            )
    return orders


def place_of(order_id: int | str) -> Place:
    """The item and the ticket that an order's id is made of."""
    return int(order_id) >> 32, int(order_id) & 0xFFFFFFFF


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """The provider's own record: a line for each thing that happened."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def time_of(text: str) -> float:
    """A time of the ledger or of an answer, in Unix seconds."""
    return datetime.fromisoformat(text).timestamp()


@dataclass(frozen=True)
class Run:
    """All the evidence of a run.

    bound: seconds within which a freed unit must be offered again. outages: pairs of Unix times
    between which the service could not do that. This time does not count against the bound.
    provider_outages: the same of the payment provider, during which nobody is promoted. It leaves
    more holds than get a session in time if an order loses a second one; while that order waits for
    the next, holds begin only as fast as their sessions are opened.
    """

    history: History
    database: FinalTables
    ledger: list[dict[str, Any]]
    stock: dict[int, int]
    """Each item's units when the run began."""
    bound: float = 1.0
    outages: list[tuple[float, float]] = field(default_factory=list)
    provider_outages: list[tuple[float, float]] = field(default_factory=list)

    def wall(self, monotonic: float | None) -> float:
        return FOREVER if monotonic is None else monotonic + self.history.epoch

    def by_item(self) -> Iterator[tuple[ItemRow, list[OrderRow]]]:
        for item_id, orders in groupby(self.database.orders, lambda order: order.item_id):
            yield self.database.items[item_id], list(orders)

    @cached_property
    def groups(self) -> dict[Place, Group]:
        """All orders with their parts, in the order of their tickets."""
        groups = {o.place: Group(o, []) for o in self.database.orders if o.is_order}
        for part in self.database.orders:
            if part.head is not None and (group := groups.get((part.item_id, part.head))):
                group.parts.append(part)
        return groups

    @cached_property
    def _away_or_behind(self) -> list[tuple[float, float]]:
        waits = [
            (begin, min(end, begin + BEHIND_SECONDS))
            for order in self.database.orders
            if len(order.lost_holds) > 1
            for begin, end in order.waits
            if begin >= order.lost_holds[1][1]
        ]
        merged: list[tuple[float, float]] = []
        for begin, end in sorted([*self.provider_outages, *waits]):
            if merged and begin <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(merged[-1][1], end)
            else:
                merged.append((begin, end))
        return merged

    def fair_seconds(self, begin: float, end: float) -> float:
        """The seconds between begin and end that lie outside of the outages."""
        lost, reached = 0.0, begin
        # The worker has to notice that the provider answers again.
        provider = [(start, stop + self.bound) for start, stop in self._away_or_behind]
        for outage in sorted([*self.outages, *provider]):
            start, stop = max(outage[0], reached), min(outage[1], end)
            if stop > start:
                lost, reached = lost + stop - start, stop
        return end - begin - lost

    def stock_changes(self, item_id: int, *, at_most: bool) -> list[tuple[float, int]]:
        """When stock changed. at_most: an upper bound where results are unknown; else a lower."""
        changes = []
        for op in self.history.ops:
            # keep_out is a refund whose unit does not go back on sale.
            if op.item_id != item_id or op.kind not in ("restock", "withdraw", "keep_out"):
                continue
            comes = op.kind == "restock"
            happened = op.outcome == "ok" or (op.outcome == "unknown" and comes == at_most)
            if happened:
                early = comes == at_most
                when = self.wall(op.asked if early else op.answered)
                changes.append((when, op.units if comes else -op.units))
        return changes


Invariant = Callable[[Run], Iterable[str]]
