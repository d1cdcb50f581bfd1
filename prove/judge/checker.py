"""Judges a run by docs/reference/invariants.md: its history, database and the provider's ledger.

It shares no code with the service: it reads the tables with its own statements, and knows about the
design only what that page says. Each invariant is a function with the same name, in the module of
what it is about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from prove.judge.deadlines import nobody_loses_a_place_to_an_outage, settling_is_short
from prove.judge.end import nothing_is_left_over, the_database_agrees
from prove.judge.line import (
    groups_get_what_is_there,
    limits_hold,
    one_live_order_a_customer,
    served_in_order,
    set_aside_units_move_on,
    tickets_respect_time,
)
from prove.judge.money import (
    every_capture_is_settled_once,
    every_grant_has_its_payment_job,
    late_money_is_told,
    money_in_time_buys,
    no_session_stays_open,
    offline_payments_count_once,
    refunds_go_back_once,
    the_amount_follows_the_units,
)
from prove.judge.orders import (
    equal_keys_get_equal_answers,
    every_hold_gets_its_window,
    only_legal_transitions,
    refusals_are_justified,
    times_make_sense,
    what_was_acknowledged_exists,
    what_was_refused_left_nothing,
)
from prove.judge.records import FINAL, FOREVER, SAME, SOLD, Invariant, OrderRow, PaymentRow, Run
from prove.judge.units import (
    burned_tickets_are_found,
    freed_units_are_offered_again,
    never_oversold,
    nobody_waits_without_need,
)

INVARIANTS: tuple[Invariant, ...] = (
    never_oversold,
    freed_units_are_offered_again,
    burned_tickets_are_found,
    nobody_waits_without_need,
    served_in_order,
    tickets_respect_time,
    set_aside_units_move_on,
    groups_get_what_is_there,
    one_live_order_a_customer,
    limits_hold,
    times_make_sense,
    every_hold_gets_its_window,
    only_legal_transitions,
    what_was_acknowledged_exists,
    what_was_refused_left_nothing,
    equal_keys_get_equal_answers,
    refusals_are_justified,
    settling_is_short,
    nobody_loses_a_place_to_an_outage,
    every_capture_is_settled_once,
    the_amount_follows_the_units,
    money_in_time_buys,
    late_money_is_told,
    refunds_go_back_once,
    offline_payments_count_once,
    no_session_stays_open,
    every_grant_has_its_payment_job,
    nothing_is_left_over,
    the_database_agrees,
)


def exercised(run: Run) -> Counter[str]:
    """How often each kind of event happened."""
    count: Counter[str] = Counter()
    money = {p.place: p for p in run.database.payments if p.bought}
    for o in run.database.orders:
        count["void"] += o.is_void
        if not o.is_order:
            continue
        began = (o.holds or [(FOREVER, FOREVER)])[0][0]
        first = "reserved" if began - o.created_at <= SAME else "waiting"
        count[f"reserve -> {first}"] += 1
        if first == "waiting" and o.reserved_at is not None:
            count["waiting -> reserved"] += 1
        count["reserved -> waiting"] += len(o.lost_holds)
        count["late money buys"] += o.late is not None
        count.update(_ends(o, money.get(o.place)))
        count.update(_of_group(o))
    for line in run.ledger:
        count["payment failed"] += line["kind"] == "moved" and line["to"] == "failed"
    for p in run.database.payments:
        if p.status != "failed":  # in the end a failed payment is voided
            count[f"payment {p.status}"] += 1
        count["offline payments"] += p.reference is not None
    for begin, end in run.provider_outages:
        count["seconds of outage"] += int(end - begin)
    keys: Counter[tuple[str, int, str]] = Counter()
    for op in run.history.ops:
        count[f"{op.kind} {op.outcome}"] += 1
        if op.kind == "reserve" and op.key and op.told:
            keys[op.customer, op.item_id, op.key] += 1
    count["same key again"] = sum(n - 1 for n in keys.values())
    return count


def _of_group(order: OrderRow) -> Iterator[str]:
    """What became of an order for several units."""
    if order.quantity > 1:
        yield "groups"
        if order.units is not None:
            yield f"groups granted {'whole' if order.units == order.quantity else 'in part'}"
        elif order.status == "unserved" and order.part_served_at is not None:
            yield "groups in vain"


def _ends(order: OrderRow, money: PaymentRow | None) -> Iterator[str]:
    """The transitions at the end of an order's life."""
    if order.status in SOLD:
        deadline = order.expires_at or FOREVER
        decided = money.ended_at if money and money.ended_at else 0.0
        # It came before the deadline, and was only heard of after it.
        before = "settling" if decided >= deadline else "reserved"
        yield f"{before} -> paid"
        if order.status == "refunded":
            yield "paid -> refunded"
            yield f"refunded by {money.refund_reason if money else None}"
    elif order.status in FINAL:
        before = "waiting" if order.reserved_at is None else "reserved"
        yield f"{before} -> {order.status}"


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
