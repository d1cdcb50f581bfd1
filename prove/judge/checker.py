"""Checks a run by docs/reference/invariants.md: its history, database and the provider's ledger.

It shares no code with the service: it reads the tables with its own statements, and knows about the
design only what that page says. Each invariant is the function below with the same name.
"""

from __future__ import annotations

import heapq
import json
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import accumulate, groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from psycopg.rows import namedtuple_row

from prove.judge.history import History, Op

Place = tuple[int, int]
"""An order's identity: item_id and ticket."""

LIVE = ("waiting", "reserved", "paid")
FINAL = ("paid", "expired", "cancelled", "unserved", "void")
NEXT = {
    "waiting": {"reserved", "paid", "expired", "cancelled", "unserved"},
    "reserved": {"paid", "expired", "cancelled"},
}
"""What an order that was seen in one state may be seen in later."""
FOREVER = float("inf")


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

    @property
    def place(self) -> Place:
        return self.item_id, self.ticket

    @property
    def left_the_line_at(self) -> float:
        return self.reserved_at or self.ended_at or FOREVER

    @property
    def released_at(self) -> float:
        """When its unit was free again. A deadline ends a hold, whether or not it was marked."""
        if self.status == "paid":
            return FOREVER
        return min(self.expires_at or FOREVER, self.ended_at or FOREVER)


class ItemRow(NamedTuple):
    """A row of items; times in Unix seconds."""

    item_id: int
    stock: int
    hold_seconds: int
    now_serving: int
    withdrawing: int
    closes_at: float | None


class PaymentRow(NamedTuple):
    """A row of payments, with the place of its order."""

    payment_id: int
    item_id: int | None
    ticket: int | None
    amount: int
    status: str
    session_id: str | None


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

    @classmethod
    def read(cls, url: str) -> FinalTables:
        """url: of a superuser or the tables' owner."""
        with psycopg.connect(url) as conn, conn.cursor(row_factory=namedtuple_row) as cursor:
            cursor.execute("set transaction isolation level repeatable read, read only")

            def rows(query: str) -> list[Any]:
                return cursor.execute(query).fetchall()

            def tables(query: str) -> list[dict[str, Any]]:
                return [
                    {name: _plain(it) for name, it in row._asdict().items()} for row in rows(query)
                ]

            return cls(
                orders=[
                    OrderRow(**row)
                    for row in tables(
                        "select item_id, ticket, customer_id as customer, status::text, created_at,"
                        " reserved_at, expires_at, paid_at, ended_at, recycled"
                        " from flashsale_data.orders union all"
                        " select w.item_id, t.ticket, null, 'void', w.withdrawn_at, null, null,"
                        " null, w.withdrawn_at, true from flashsale_data.withdrawn_tickets w,"
                        " generate_series(w.first_ticket, w.last_ticket) t (ticket)"
                        " order by item_id, ticket"
                    )
                ],
                items={
                    row["item_id"]: ItemRow(**row)
                    for row in tables(
                        "select item_id, stock, hold_seconds, now_serving, withdrawing, closes_at"
                        " from flashsale_data.items"
                    )
                },
                payments=[
                    PaymentRow(**row)
                    for row in tables(
                        "select p.payment_id, o.item_id, o.ticket, p.amount, p.status::text,"
                        " p.session_id from flashsale_data.payments p"
                        " left join flashsale_data.orders o using (order_id) order by 1"
                    )
                ],
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
            )


def _plain(value: Any) -> Any:
    return value.timestamp() if isinstance(value, datetime) else value


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """The provider's own record: a line for each thing that happened."""
    return [json.loads(line) for line in path.read_text().splitlines()]


@dataclass(frozen=True)
class Run:
    """All the evidence of a run.

    bound: seconds within which a freed unit must be offered again. outages: pairs of Unix times
    between which the service could not do that. This time does not count against the bound.
    """

    history: History
    database: FinalTables
    ledger: list[dict[str, Any]]
    stock: dict[int, int]
    """Each item's units when the run began."""
    bound: float = 1.0
    outages: list[tuple[float, float]] = field(default_factory=list)

    def wall(self, monotonic: float | None) -> float:
        return FOREVER if monotonic is None else monotonic + self.history.epoch

    def by_item(self) -> Iterator[tuple[ItemRow, list[OrderRow]]]:
        for item_id, orders in groupby(self.database.orders, lambda order: order.item_id):
            yield self.database.items[item_id], list(orders)

    def fair_seconds(self, begin: float, end: float) -> float:
        """The seconds between begin and end that lie outside of the outages."""
        lost, reached = 0.0, begin
        for outage in sorted(self.outages):
            start, stop = max(outage[0], reached), min(outage[1], end)
            if stop > start:
                lost, reached = lost + stop - start, stop
        return end - begin - lost

    def stock_changes(self, item_id: int, *, at_most: bool) -> list[tuple[float, int]]:
        """When stock changed. at_most: an upper bound where results are unknown; else a lower."""
        changes = []
        for op in self.history.ops:
            if op.item_id != item_id or op.kind not in ("restock", "withdraw"):
                continue
            comes = op.kind == "restock"
            happened = op.outcome == "ok" or (op.outcome == "unknown" and comes == at_most)
            if happened:
                early = comes == at_most
                when = self.wall(op.asked if early else op.answered)
                changes.append((when, op.units if comes else -op.units))
        return changes


Invariant = Callable[[Run], Iterable[str]]


# Units


def never_oversold(run: Run) -> Iterator[str]:
    for item, orders in run.by_item():
        # A withdrawal takes free units only, so it never makes the live units exceed the stock.
        steps = [c for c in run.stock_changes(item.item_id, at_most=True) if c[1] > 0]
        for order in orders:
            if order.reserved_at is not None:
                steps.append((order.reserved_at, -1))
                if order.ended_at is not None:
                    steps.append((order.ended_at, 1))
        free = run.stock[item.item_id]
        for when, step in sorted(steps, key=lambda s: (s[0], -s[1])):
            free += step
            if free < 0:
                yield f"item {item.item_id}: {-free} units too many at {when:.6f}"
                break
        held = sum(order.status in ("reserved", "paid") for order in orders)
        if held > item.stock:
            yield f"item {item.item_id}: {held} units held or paid in the end, stock {item.stock}"


def freed_units_are_offered_again(run: Run) -> Iterator[str]:
    for item, orders in run.by_item():
        end = min(run.database.now, item.closes_at or FOREVER)
        free = deque([-FOREVER] * run.stock[item.item_id])  # since when each unit is free
        owed, waiting, line_since = 0, 0, FOREVER
        for when, units, joined in [*_steps(run, item, orders), (end, 0, 0)]:
            if free and waiting:
                idle = run.fair_seconds(max(free[0], line_since), min(when, end))
                if idle > run.bound:
                    yield (
                        f"item {item.item_id}: a unit was free for {idle:.3f} s until {when:.6f}, "
                        f"with {waiting} customers waiting"
                    )
                    break
            for _ in range(-units):
                if free:
                    free.popleft()
                else:
                    owed += 1
            for _ in range(units):
                if owed:
                    owed -= 1
                else:
                    free.append(when)
            if joined and not waiting:
                line_since = when
            waiting += joined


def _steps(run: Run, item: ItemRow, orders: list[OrderRow]) -> list[tuple[float, int, int]]:
    """Steps in time: when, the change of certainly free units, and that of waiting orders."""
    steps = [(when, units, 0) for when, units in run.stock_changes(item.item_id, at_most=False)]
    for burned, order in _burned(item, orders):
        steps += [(burned - run.bound, -1, 0), (max(burned, order.ended_at or burned), 1, 0)]
    for order in orders:
        if order.reserved_at is not None:
            steps.append((order.reserved_at, -1, 0))
            if order.released_at < FOREVER:
                steps.append((order.released_at, 1, 0))
        if order.customer is not None and order.reserved_at != order.created_at:
            steps.append((order.created_at, 0, 1))
            if order.left_the_line_at < FOREVER:
                steps.append((order.left_the_line_at, 0, -1))
    return sorted(steps)


def _burned(item: ItemRow, orders: list[OrderRow]) -> Iterator[tuple[float, OrderRow]]:
    """Void tickets, with the time by which they must have been given out.

    Such a ticket keeps a unit, once the line has reached it, until it is found to be void.
    """
    known = orders[0].created_at
    for order in orders:
        if order.customer is not None:
            known = max(known, order.created_at)
        elif order.ticket <= item.now_serving:
            yield known, order


def burned_tickets_are_found(run: Run) -> Iterator[str]:
    for item, orders in run.by_item():
        following = FOREVER
        for order in reversed(orders):  # the next ticket was given out later than this one
            if order.customer is not None:
                following = min(following, order.created_at)
            elif following < FOREVER and order.ticket <= item.now_serving:
                blind = run.fair_seconds(following, order.ended_at or run.database.now)
                if blind > run.bound:
                    yield f"{order.place} was burned, which took {blind:.3f} s to find"


def nobody_waits_without_need(run: Run) -> Iterator[str]:
    answers = defaultdict(list)
    for op in run.history.ops:
        if op.kind == "reserve" and op.status == 202 and op.told:
            answers[op.item_id].append(op)
    for item, orders in run.by_item():
        steps = _steps(run, item, orders)
        times = [when for when, _, _ in steps]
        free = list(accumulate((units for _, units, _ in steps), initial=run.stock[item.item_id]))
        taken = list(accumulate((max(0, -units) for _, units, _ in steps), initial=0))
        waits = [o for o in orders if o.reserved_at != o.created_at]
        for op in answers[item.item_id]:
            begin, end = run.wall(op.asked) - run.bound, run.wall(op.answered)
            first, last = bisect_right(times, begin), bisect_right(times, end)
            # Only units that were free during all of that time count.
            if free[first] - (taken[last] - taken[first]) <= 0:
                continue
            assert op.told
            ahead = any(
                o.ticket < op.told[1] and o.created_at < end and o.left_the_line_at > begin
                for o in waits
            )
            if not ahead and run.fair_seconds(begin, end) > run.bound:
                yield f"op {op.number}: told to wait as {op.told} while a unit was free"


# The line


def served_in_order(run: Run) -> Iterator[str]:
    for _item, orders in run.by_item():
        yield from _passed_over(orders)
        yield from _overtaken(run, orders)


def _passed_over(orders: list[OrderRow]) -> Iterator[str]:
    """Orders that were never served, although a later ticket was."""
    last = max((order.ticket for order in orders if order.reserved_at is not None), default=0)
    for order in orders:
        if order.ticket < last and order.status in ("waiting", "unserved"):
            yield f"{order.place} is {order.status}, but ticket {last} was served"


def _overtaken(run: Run, orders: list[OrderRow]) -> Iterator[str]:
    """Orders that were served while one with a lower ticket went on waiting."""
    # left: orders with lower tickets, by when they stopped waiting, the longest wait first
    left: list[tuple[float, float, Place]] = []
    for order in orders:
        if order.customer is None:
            continue
        if order.reserved_at is not None:
            while left and -left[0][0] <= order.reserved_at:
                heapq.heappop(left)  # grants are nearly in time order too
            if left:
                gone, created, place = -left[0][0], left[0][1], left[0][2]
                begin = max(order.reserved_at, created)
                if run.fair_seconds(begin, min(gone, run.database.now)) > run.bound:
                    yield f"{order.place} was served before {place}, which went on waiting"
        if order.reserved_at != order.created_at:
            heapq.heappush(left, (-order.left_the_line_at, order.created_at, order.place))


def tickets_respect_time(run: Run) -> Iterator[str]:
    asked: dict[Place, float] = {}
    answered: dict[Place, float] = {}
    doubtful: dict[tuple[str, int], list[float]] = defaultdict(list)
    for op in run.history.ops:
        if op.kind == "reserve" and op.outcome == "unknown":
            doubtful[op.customer, op.item_id].append(op.asked)
    for op in run.history.ops:
        if op.kind == "reserve" and (place := op.told) and op.answered is not None:
            # An earlier request without an answer may have taken the ticket.
            earlier = [t for t in doubtful[op.customer, op.item_id] if t < op.asked]
            first = min([op.asked, *earlier])
            asked[place] = min(asked.get(place, FOREVER), first)
            answered[place] = min(answered.get(place, FOREVER), op.answered)
    for _, group in groupby(sorted(asked), lambda place: place[0]):
        places = list(group)
        by_answer = sorted(places, key=lambda p: answered[p])
        times = [answered[p] for p in by_answer]
        highest, best = [], (0, 0)
        for place in by_answer:
            best = max(best, place)
            highest.append(best)
        for place in places:
            before = bisect_left(times, asked[place])
            if before and highest[before - 1] > place:
                yield f"{place} was asked for after {highest[before - 1]} had been answered"


def one_live_order_a_customer(run: Run) -> Iterator[str]:
    lives = defaultdict(list)
    for order in run.database.orders:
        if order.customer is not None:
            lives[order.customer, order.item_id].append(order)
    for orders in lives.values():
        orders.sort(key=lambda order: order.created_at)
        for one, following in pairwise(orders):
            if following.created_at < min(one.ended_at or FOREVER, one.released_at):
                yield f"{one.place} was live when {one.customer} got {following.place}"


# Orders


def times_make_sense(run: Run) -> Iterator[str]:
    for o in run.database.orders:
        problem = None
        if o.reserved_at is not None and o.reserved_at < o.created_at:
            problem = "reserved before it was created"
        elif (o.status in LIVE) != (o.ended_at is None):
            problem = "ended, or not"
        elif (o.status == "paid") != (o.paid_at is not None):
            problem = "paid without a time, or the other way round"
        elif o.paid_at is not None and not (o.paid_at < (o.expires_at or 0)):
            problem = "paid at or after its deadline"
        elif o.status == "expired" and not ((o.expires_at or FOREVER) <= (o.ended_at or 0)):
            problem = "expired before its deadline"
        elif o.status in ("reserved", "paid", "expired") and o.reserved_at is None:
            problem = "never reserved"
        elif o.status in ("unserved", "waiting", "void") and o.reserved_at is not None:
            problem = "had a unit"
        if problem:
            yield f"{o.place}, {o.status}: {problem}: {o}"


def every_hold_gets_its_window(run: Run) -> Iterator[str]:
    for o in run.database.orders:
        if o.reserved_at is None:
            continue
        window = (o.expires_at or 0) - o.reserved_at
        wanted = run.database.items[o.item_id].hold_seconds
        if abs(window - wanted) > 1e-5:
            yield f"{o.place}: held for {window:.6f} s instead of {wanted} s"


def only_legal_transitions(run: Run) -> Iterator[str]:
    seen: dict[Place, list[Op]] = defaultdict(list)
    for op in run.history.ops:
        if place := op.told:
            seen[place].append(op)
    rows = {order.place: order.status for order in run.database.orders}
    for place, ops in seen.items():
        for one, later in _one_after_the_other(ops):
            old, new = one.body["status"], later.body["status"]
            if not _may_become(old, new):
                yield f"{place} was {old} (op {one.number}), then {new} (op {later.number})"
        last, final = ops[-1].body["status"], rows.get(place)
        if final and not _may_become(last, final):
            yield f"{place} was {last} (op {ops[-1].number}), and in the end {final}"


def _may_become(old: str, new: str) -> bool:
    # A hold past its deadline is shown as expired while a payment in time is committing.
    return old == new or new in NEXT.get(old, ()) or (old, new) == ("expired", "paid")


def _one_after_the_other(ops: list[Op]) -> Iterator[tuple[Op, Op]]:
    """Pairs of operations of which the first was answered before the second was sent."""
    ops = sorted(ops, key=lambda op: op.asked)
    for i, op in enumerate(ops):
        for later in ops[i + 1 :]:
            if op.answered is not None and later.asked > op.answered:
                yield op, later
                break


def what_was_acknowledged_exists(run: Run) -> Iterator[str]:
    rows = {order.place: order for order in run.database.orders}
    for op in run.history.ops:
        if not (place := op.told):
            continue
        order = rows.get(place)
        if order is None:
            yield f"op {op.number}: {place} was answered and does not exist"
        elif order.customer != op.body["customer_id"] or op.customer != order.customer:
            yield f"op {op.number}: {place} is {order.customer}'s, not {op.customer}'s"
        else:
            for name in ("created_at", "reserved_at", "expires_at", "paid_at"):
                told, kept = op.body[name], getattr(order, name)
                if told is not None and abs(_time(told) - (kept or 0)) > 1e-6:
                    yield f"op {op.number}: {place} {name} was {told}, is {kept}"


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def what_was_refused_left_nothing(run: Run) -> Iterator[str]:
    asked: dict[tuple[str, int], list[Op]] = defaultdict(list)
    for op in run.history.ops:
        if op.kind == "reserve":
            asked[op.customer, op.item_id].append(op)
    shown = {op.told for op in run.history.ops if op.told}
    for order in run.database.orders:
        if order.customer is None or order.place in shown:
            continue
        ops = asked[order.customer, order.item_id]
        # Only a request without an answer may have made an order that no answer shows.
        if not any(
            op.outcome == "unknown" and run.wall(op.asked) <= order.created_at + 1e-3 for op in ops
        ):
            yield f"{order.place} of {order.customer} exists, though every request was refused"
    answers = {
        (op.customer, op.item_id, op.key) for op in run.history.ops if op.outcome != "refused"
    }
    for who in run.database.keys:
        if who not in answers:
            yield f"key {who} is kept, though its request was refused"


def equal_keys_get_equal_answers(run: Run) -> Iterator[str]:
    first: dict[tuple[str, int, str], Op] = {}
    for op in run.history.ops:
        if op.kind == "reserve" and op.key and op.told:
            known = first.setdefault((op.customer, op.item_id, op.key), op)
            if known.told != op.told:
                yield f"ops {known.number} and {op.number}, one key: {known.told} and {op.told}"
            kept = run.database.keys.get((op.customer, op.item_id, op.key))
            if kept != op.told:
                yield f"op {op.number}: the key {op.key} leads to {kept}, answered was {op.told}"


# Money


@dataclass
class Moves:
    """One session in the provider's ledger: how often its money moved, and how much."""

    times: Counter[str] = field(default_factory=Counter)
    amounts: dict[str, int] = field(default_factory=dict)

    @property
    def is_kept(self) -> bool:
        return bool(self.times["captured"] and not self.times["refunded"])


def every_capture_is_settled_once(run: Run) -> Iterator[str]:
    sessions: dict[str, Moves] = defaultdict(Moves)
    for line in run.ledger:
        if line["kind"] == "moved":
            moves = sessions[line["session_id"]]
            moves.times[line["to"]] += 1
            moves.amounts[line["to"]] = line.get("amount", 0)
    payments = {p.session_id: p for p in run.database.payments if p.session_id}
    for session, moves in sessions.items():
        if max(moves.times.values()) > 1:
            yield f"session {session}: an effect happened twice: {dict(moves.times)}"
        if moves.times["captured"]:
            yield from _unsettled(session, moves, payments.get(session))
        else:
            yield from _settled_without_money(payments.get(session))
    yield from _not_paid_once(run, sessions, payments)


def _settled_without_money(payment: PaymentRow | None) -> Iterator[str]:
    if payment and payment.status in ("succeeded", "refund_due", "refunded"):
        yield f"payment {payment.payment_id} is {payment.status}, nothing was captured"


def _unsettled(session: str, moves: Moves, payment: PaymentRow | None) -> Iterator[str]:
    """Problems of a session whose money has come: it must be kept for a sale, or refunded."""
    if payment is None:
        yield f"session {session}: captured, and no payment knows of it"
    elif payment.status == "refunded" and moves.times["refunded"]:
        took, gave = moves.amounts["captured"], moves.amounts["refunded"]
        if took != gave:
            yield f"session {session}: took {took}, gave back {gave}"
    elif payment.status != "succeeded" or not moves.is_kept:
        yield f"session {session}: {dict(moves.times)}, and payment {payment.status}"


def _not_paid_once(
    run: Run, sessions: dict[str, Moves], payments: dict[str, PaymentRow]
) -> Iterator[str]:
    """Captures kept for unpaid orders, and paid orders without exactly one capture."""
    paid = {o.place for o in run.database.orders if o.status == "paid"}
    bought: Counter[Place] = Counter()
    for session, moves in sessions.items():
        payment = payments.get(session)
        if payment and payment.status == "succeeded" and moves.is_kept:
            place = (payment.item_id or 0, payment.ticket or 0)
            bought[place] += 1
            if place not in paid:
                yield f"session {session}: captured for {place}, which is not paid"
    for place in paid:
        if bought[place] != 1:
            yield f"{place} is paid by {bought[place]} captures"


def every_grant_has_its_payment_job(run: Run) -> Iterator[str]:
    sessions = Counter(line["payment_id"] for line in run.ledger if line["kind"] == "opened")
    for payment_id, count in sessions.items():
        if count > 1:
            yield f"payment {payment_id}: {count} sessions were opened"
    attempts: dict[Place, list[PaymentRow]] = defaultdict(list)
    for payment in run.database.payments:
        if payment.item_id is not None:
            attempts[payment.item_id, payment.ticket or 0].append(payment)
    for order in run.database.orders:
        yield from _wrong_attempts(order, attempts[order.place])


def _wrong_attempts(order: OrderRow, tries: list[PaymentRow]) -> Iterator[str]:
    if order.reserved_at is None:
        if tries:
            yield f"{order.place} was never granted and has {len(tries)} payments"
        return
    if not tries:
        yield f"{order.place} was granted and has no payment"
    for before in tries[:-1]:
        if before.status not in ("failed", "refunded", "refund_due"):
            yield f"{order.place}: a second attempt while payment {before.payment_id} stood"


# The end


def nothing_is_left_over(run: Run) -> Iterator[str]:
    database = run.database
    if database.jobs:
        yield f"{database.jobs} jobs are left in the queues"
    if database.dead_letters:
        yield f"{database.dead_letters} jobs were given up"
    for op in run.history.unresolved():
        yield f"op {op.number}: {op.customer} never learned what became of it"
    for item, orders in run.by_item():
        yield from _overdue(run, item, orders)
        yield from _lost_units(item, orders)
    for payment in database.payments:
        if payment.status in ("requested", "refund_due"):
            yield f"payment {payment.payment_id} is still {payment.status}"


def _overdue(run: Run, item: ItemRow, orders: list[OrderRow]) -> Iterator[str]:
    """Orders with a change that was due and has not happened."""
    for order in orders:
        if order.status == "reserved" and (order.expires_at or 0) < run.database.now - run.bound:
            yield f"{order.place} is past its deadline and still holds a unit"
        if order.status == "waiting" and order.ticket <= item.now_serving:
            yield f"{order.place} is entitled to a unit and still waits"


def _lost_units(item: ItemRow, orders: list[OrderRow]) -> Iterator[str]:
    """Tickets that the line has passed, whose units are neither held nor passed on."""
    tickets = {order.ticket for order in orders}
    burned = set(range(1, min(item.now_serving, max(tickets)) + 1)) - tickets
    if burned:
        yield f"item {item.item_id}: nobody has tickets {sorted(burned)[:10]}"
    lost = [
        order.place
        for order in orders
        if order.ended_at and not order.recycled and order.ticket <= item.now_serving
    ]
    if lost:
        yield f"item {item.item_id}: these units were never offered again: {lost[:10]}"


def the_database_agrees(run: Run) -> Iterator[str]:
    yield from run.database.violations


INVARIANTS: tuple[Invariant, ...] = (
    never_oversold,
    freed_units_are_offered_again,
    burned_tickets_are_found,
    nobody_waits_without_need,
    served_in_order,
    tickets_respect_time,
    one_live_order_a_customer,
    times_make_sense,
    every_hold_gets_its_window,
    only_legal_transitions,
    what_was_acknowledged_exists,
    what_was_refused_left_nothing,
    equal_keys_get_equal_answers,
    every_capture_is_settled_once,
    every_grant_has_its_payment_job,
    nothing_is_left_over,
    the_database_agrees,
)


def exercised(run: Run) -> Counter[str]:
    """How often each kind of event happened."""
    count: Counter[str] = Counter()
    for o in run.database.orders:
        if o.status == "void":
            count["void"] += 1
            continue
        first = "reserved" if o.reserved_at == o.created_at else "waiting"
        count[f"reserve -> {first}"] += 1
        if first == "waiting" and o.reserved_at is not None:
            count["waiting -> reserved"] += 1
        if o.status in FINAL:
            before = "waiting" if o.reserved_at is None else "reserved"
            count[f"{before} -> {o.status}"] += 1
    for p in run.database.payments:
        count[f"payment {p.status}"] += 1
    keys: Counter[tuple[str, int, str]] = Counter()
    for op in run.history.ops:
        count[f"{op.kind} {op.outcome}"] += 1
        if op.kind == "reserve" and op.key and op.told:
            keys[op.customer, op.item_id, op.key] += 1
    count["same key again"] = sum(n - 1 for n in keys.values())
    return count


def judge(
    run: Run,
    at_least: dict[str, int] | None = None,
    only: Iterable[Invariant] = INVARIANTS,
) -> list[str]:
    """All violations, by invariant; events that were too rare count as one. None: it is proved."""
    found = [f"{it.__name__}: {problem}" for it in only for problem in it(run)]
    count = exercised(run)
    found += [
        f"too little exercise: {what} happened {count[what]} times, wanted are {wanted}"
        for what, wanted in (at_least or {}).items()
        if count[what] < wanted
    ]
    return found
