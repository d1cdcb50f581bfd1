"""Invariants about money: what came buys one order or goes back, once."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from prove.judge.records import (
    FOREVER,
    REFUNDS,
    SAME,
    SOLD,
    OrderRow,
    PaymentRow,
    Place,
    Run,
    place_of,
    time_of,
)


@dataclass
class Moves:
    """One session in the provider's ledger: how often its money moved, and how much."""

    times: Counter[str] = field(default_factory=Counter)
    amounts: dict[str, int] = field(default_factory=dict)

    @property
    def is_kept(self) -> bool:
        return bool(self.times["captured"] and not self.times["refunded"])


def _sessions(run: Run) -> dict[str, Moves]:
    sessions: dict[str, Moves] = defaultdict(Moves)
    for line in run.ledger:
        if line["kind"] == "moved":
            moves = sessions[line["session_id"]]
            moves.times[line["to"]] += 1
            moves.amounts[line["to"]] = line.get("amount", 0)
    return sessions


def every_capture_is_settled_once(run: Run) -> Iterator[str]:
    sessions = _sessions(run)
    payments = {p.session_id: p for p in run.database.payments if p.session_id}
    for session, moves in sessions.items():
        # A payment may fail again and again in a session that stays open.
        if any(count > 1 for what, count in moves.times.items() if what != "failed"):
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
    """Captures kept for unpaid orders, and paid orders without exactly one piece of money."""
    paid = {o.place for o in run.database.orders if o.status == "paid" and o.is_order}
    tills = [p for p in run.database.payments if p.reference and p.status == "succeeded"]
    bought = Counter(payment.place for payment in tills)
    for session, moves in sessions.items():
        payment = payments.get(session)
        if payment and payment.status == "succeeded" and moves.is_kept:
            bought[payment.place] += 1
            if payment.place not in paid:
                yield f"session {session}: captured for {payment.place}, which is not paid"
    for place in paid:
        if bought[place] != 1:
            yield f"{place} is paid by {bought[place]} captures or payments at a till"


def the_amount_follows_the_units(run: Run) -> Iterator[str]:
    rows = {order.place: order for order in run.database.orders}
    for payment in run.database.payments:
        order = rows.get(payment.place)
        if order is None or not (payment.bought or payment.status in ("requested", "open")):
            continue  # otherwise it may be what came
        price, units = run.database.items[order.item_id].price, order.units or 1
        if price is not None and payment.amount != price * units:
            yield f"payment {payment.payment_id} of {units} units is {payment.amount}"


def money_in_time_buys(run: Run) -> Iterator[str]:
    rows = {order.place: order for order in run.database.orders}
    payments = {p.session_id: p for p in run.database.payments if p.session_id}
    opened = {line["session_id"]: line for line in run.ledger if line["kind"] == "opened"}
    for line in run.ledger:
        if line["kind"] != "moved" or line["to"] != "captured":
            continue
        payment = payments.get(line["session_id"])
        if payment is None:
            continue  # which every_capture_is_settled_once reports
        asked_for = opened[line["session_id"]]["order_id"]
        order = rows.get(place_of(asked_for) if asked_for else payment.place)
        if order is not None:
            yield from _judged_wrongly(run, time_of(line["at"]), payment, order)


def _judged_wrongly(
    run: Run, captured_at: float, payment: PaymentRow, order: OrderRow
) -> Iterator[str]:
    """Whether money bought its order exactly if it came before the deadline."""
    told = f"{order.place}: payment {payment.payment_id} was captured at {captured_at:.6f}"
    deadline = order.expires_at or 0.0
    if payment.place == order.place and payment.bought:
        if captured_at >= deadline:
            yield f"{told}, {captured_at - deadline:.6f} s late, and bought the order"
        # Money that came before its session was known to be open counts from when we heard of it.
        elif (payment.opened_at or FOREVER) <= captured_at and not (
            abs((order.paid_at or 0.0) - max(captured_at, order.reserved_at or 0.0)) <= SAME
        ):
            yield f"{told}, and the order is paid at {order.paid_at}"
        return
    settled = run.database.items[order.item_id].settle_seconds
    if order.status == "expired" and (payment.opened_at or FOREVER) <= captured_at < deadline:
        kept_for = (order.ended_at or 0.0) - deadline
        if kept_for < settled - SAME:
            yield f"{told}, in time, and the order expired after {kept_for:.3f} s of settling"
    if order.status in ("reserved", "settling") and captured_at < deadline:
        yield f"{told}, in time, and the order is {order.status}"


def late_money_is_told(run: Run) -> Iterator[str]:
    rows = {order.place: order for order in run.database.orders}
    opened = {line["session_id"]: line for line in run.ledger if line["kind"] == "opened"}
    moved: dict[Place, Place] = {}
    for payment in run.database.payments:
        line = opened.get(payment.session_id or "")
        if line and line["order_id"] and payment.item_id:
            asked_for = place_of(line["order_id"])
            if asked_for != payment.place:
                moved[asked_for] = payment.place
    for order in run.database.orders:
        if order.late != moved.get(order.place):
            yield f"{order.place} names {order.late}, its money bought {moved.get(order.place)}"
        elif order.late:
            new = rows.get(order.late)
            if order.status != "expired":
                yield f"{order.place} is {order.status}, and its money bought {order.late}"
            elif new is None or new.customer != order.customer or new.status not in SOLD:
                yield f"{order.place} names {order.late}, which is {new}"


def refunds_go_back_once(run: Run) -> Iterator[str]:
    keys = {
        line["session_id"]: line.get("key")
        for line in run.ledger
        if line["kind"] == "moved" and line["to"] == "refunded"
    }
    given_back: dict[Place, list[PaymentRow]] = defaultdict(list)
    for payment in run.database.payments:
        if payment.refund_reason in REFUNDS:
            given_back[payment.place].append(payment)
    by_staff = {
        place_of(act.order_id)
        for act in run.database.acts
        if act.action == "refund_order" and act.order_id
    }
    for order in run.database.orders:
        if not order.is_order:
            continue
        payments = given_back.pop(order.place, [])
        if order.status != "refunded":
            if payments:
                yield f"{order.place} is {order.status}, and its money went back"
        elif [payment.status for payment in payments] != ["refunded"]:
            yield f"{order.place} is refunded, by {payments}"
        else:
            yield from _refunded_wrongly(run, order, payments[0], keys, by_staff)
    refunded = {order.place for order in run.database.orders if order.status == "refunded"}
    for op in run.history.ops:
        done = op.kind in ("refund_order", "keep_out") and op.outcome == "ok"
        if done and op.order not in refunded:
            yield f"op {op.number}: {op.order} was refunded, and is not"


def _refunded_wrongly(
    run: Run,
    order: OrderRow,
    payment: PaymentRow,
    keys: dict[str, str | None],
    by_staff: set[Place],
) -> Iterator[str]:
    """Whether somebody refunded an order who had no right to."""
    allowed = run.database.items[order.item_id].refund_seconds
    kept_for = (order.ended_at or 0.0) - (order.paid_at or 0.0)
    if payment.refund_reason == "customer" and not kept_for <= (allowed or 0):
        yield f"{order.place}: given back after {kept_for:.3f} s, allowed are {allowed}"
    elif payment.refund_reason == "staff" and order.place not in by_staff:
        yield f"{order.place}: refunded by staff, and history does not tell"
    elif payment.refund_reason == "provider" and keys.get(payment.session_id or "", "") is not None:
        yield f"{order.place}: refunded at the provider, and the ledger does not tell"


def offline_payments_count_once(run: Run) -> Iterator[str]:
    tills = {p.reference: p for p in run.database.payments if p.reference}
    for reference, count in Counter(p.reference for p in run.database.payments).items():
        if reference and count > 1:
            yield f"reference {reference} paid {count} times"
    for payment in tills.values():
        if payment.session_id or not payment.bought:
            yield f"payment {payment.payment_id} of a till: {payment}"
    for op in run.history.ops:
        if op.kind == "pay_offline" and op.outcome == "ok":
            known = tills.get(op.key)
            if known is None or known.place != op.order:
                yield f"op {op.number}: {op.order} was paid by {op.key}, which is {known}"


def no_session_stays_open(run: Run) -> Iterator[str]:
    state: dict[str, str] = {}
    orders: dict[str, Any] = {}
    for line in run.ledger:
        if line["kind"] == "opened":
            orders[line["session_id"]], state[line["session_id"]] = line.get("order_id"), "open"
        elif line["kind"] == "moved":
            state[line["session_id"]] = "open" if line.get("payable") else line["to"]
    held = {o.place for o in run.database.orders if o.status in ("reserved", "settling")}
    for session, status in state.items():
        if status == "open" and orders.get(session) and place_of(orders[session]) not in held:
            yield f"session {session} can still be paid, and its order is over"


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
    if order.reserved_at is None or order.head is not None:  # a part is paid with its order
        if tries:
            yield f"{order.place} was never granted and has {len(tries)} payments"
        return
    if not tries and not order.late:
        yield f"{order.place} was granted and has no payment"
    for before in tries[:-1]:
        # An earlier attempt may still be paid, and is voided once another one is.
        if before.status in ("requested", "open"):
            yield f"{order.place}: a second attempt while payment {before.payment_id} stood"
