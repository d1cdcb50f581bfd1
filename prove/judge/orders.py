"""Invariants about orders: their times and states, and what their customers were told."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from prove.judge.history import Op
from prove.judge.records import (
    FOREVER,
    LIVE,
    NEXT,
    SAME,
    SOLD,
    ItemRow,
    OrderRow,
    Place,
    Run,
    place_of,
    time_of,
)


def times_make_sense(run: Run) -> Iterator[str]:
    for o in run.database.orders:
        if o.head is not None:
            continue  # a part has the times of its order
        if problem := _wrong_times(o) or _wrong_unit(o):
            yield f"{o.place}, {o.status}: {problem}: {o}"


def _wrong_times(o: OrderRow) -> str | None:
    if o.reserved_at is not None and o.reserved_at < o.created_at:
        return "reserved before it was created"
    if (o.status in LIVE) != (o.ended_at is None):
        return "ended, or not"
    if (o.status in SOLD) != (o.paid_at is not None):
        return "paid without a time, or the other way round"
    if o.paid_at is not None and not (o.paid_at < (o.expires_at or 0)):
        return "paid at or after its deadline"
    if o.status == "refunded" and (o.ended_at or 0) < (o.paid_at or 0):
        return "refunded before it was paid"
    if o.status == "expired" and not ((o.expires_at or FOREVER) <= (o.ended_at or 0)):
        return "expired before its deadline"
    return None


def _wrong_unit(o: OrderRow) -> str | None:
    if o.status in ("reserved", "settling", *SOLD, "expired") and o.reserved_at is None:
        return "never reserved"
    if o.status in ("unserved", "waiting", "void") and o.reserved_at and not o.lost_holds:
        return "had a unit"
    return None


def every_hold_gets_its_window(run: Run) -> Iterator[str]:
    for o in run.database.orders:
        wanted = run.database.items[o.item_id].hold_seconds
        for begin, end in _windows(o) if o.is_order else ():
            more = _extensions(run, o, begin, min(end, o.paid_at or o.ended_at or FOREVER))
            window = end - begin - wanted
            late = 0.0
            if (begin, end) in o.lost_holds:  # it ends when that is noticed
                late = run.bound + end - begin - run.fair_seconds(begin, end)
            if not more[0] - SAME <= window <= more[1] + late + SAME:
                wrong = f"{o.place}: held for {end - begin:.6f} s instead of {wanted} s"
                yield f"{wrong} and {more[0]} to {more[1]} s of extensions"


def _windows(order: OrderRow) -> list[tuple[float, float]]:
    """From when to when the customer could pay."""
    windows = list(order.lost_holds)
    if order.reserved_at is not None and order.expires_at is not None:
        windows.append((order.reserved_at, order.expires_at))
    return windows


def _extensions(run: Run, order: OrderRow, begin: float, end: float) -> tuple[int, int]:
    """By how many seconds staff extended a hold: at least, and at most.

    An extension is noted a moment after it has chosen the holds.
    """
    given = [act for act in run.database.acts if act.item_id == order.item_id and act.seconds]
    certain = [act.seconds or 0 for act in given if begin + run.bound < act.at < end - run.bound]
    likely = [act.seconds or 0 for act in given if begin <= act.at <= end + run.bound]
    return sum(certain), sum(likely)


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
    return old == new or new in NEXT.get(old, ()) or (old == "expired" and new in SOLD)


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
            for name in ("quantity", "units"):
                told = op.body.get(name)
                if told is not None and told != getattr(order, name):
                    yield f"op {op.number}: {place} {name} was {told}, is {getattr(order, name)}"
            for name in ("created_at", "reserved_at", "expires_at", "paid_at"):
                told, kept = op.body[name], getattr(order, name)
                if told is not None and not _still_holds(run, op, order, name, time_of(told)):
                    yield f"op {op.number}: {place} {name} was {told}, is {kept}"


def _still_holds(run: Run, op: Op, order: OrderRow, name: str, told: float) -> bool:
    """Whether a time that was told is kept, or was changed by an extension or an outage."""
    kept = [getattr(order, name) or 0.0]
    if name == "reserved_at":
        kept += [begin for begin, _ in order.lost_holds]
    elif name == "expires_at":
        wanted = run.database.items[order.item_id].hold_seconds
        kept += [begin + wanted for begin, _ in order.lost_holds]
        given = [act for act in run.database.acts if act.item_id == order.item_id and act.seconds]
        for act in given:  # given before, to a lost hold, or after it was told
            kept += [time + (act.seconds or 0) for time in kept if act.at <= time + run.bound]
            kept += [kept[0] - (act.seconds or 0)] if act.at > run.wall(op.asked) - 1.0 else []
    return any(abs(told - time) <= SAME for time in kept)


def what_was_refused_left_nothing(run: Run) -> Iterator[str]:
    asked: dict[tuple[str, int], list[Op]] = defaultdict(list)
    for op in run.history.ops:
        if op.kind == "reserve":
            asked[op.customer, op.item_id].append(op)
    shown = {op.told for op in run.history.ops if op.told}
    shown |= {order.late for order in run.database.orders if order.late}  # by late money
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


def refusals_are_justified(run: Run) -> Iterator[str]:
    requests: dict[tuple[str, int, str], set[tuple[int, int]]] = defaultdict(set)
    mine: dict[tuple[str, int], list[OrderRow]] = defaultdict(list)
    for op in run.history.ops:
        if op.kind == "reserve":
            requests[op.customer, op.item_id, op.key].add(_request(op))
    for order in run.database.orders:
        if order.customer is not None:
            mine[order.customer, order.product].append(order)
    for op in run.history.ops:
        if op.kind != "reserve" or op.outcome != "refused":
            continue
        item = run.database.items[op.item_id]
        orders = mine[op.customer, item.product_id or item.item_id]
        used = len(requests[op.customer, op.item_id, op.key])
        wrong = {
            "too_many": not _is_too_many(run, op, item, orders),
            "has_other_order": not _has_other(op, orders),
            "key_reused": used < 2,
        }
        code = op.body.get("code", "")
        if wrong.get(code):
            yield f"op {op.number} of {op.customer} was refused, {code}: {op.quantity} of {item}"


def _is_too_many(run: Run, op: Op, item: ItemRow, orders: list[OrderRow]) -> bool:
    """Whether the customer may have had so many units that the limit left no room."""
    had = sum(order.units or 0 for order in orders if order.created_at <= run.wall(op.answered))
    return op.quantity > item.max_per_order or had + op.quantity > item.limit


def _has_other(op: Op, orders: list[OrderRow]) -> bool:
    """Whether the order that the refusal names is the customer's, and for another variant."""
    named = place_of(op.body.get("order_id") or 0)
    return named[0] != op.item_id and any(order.place == named for order in orders)


def _request(op: Op) -> tuple[int, int]:
    """What is bound to a key."""
    return op.quantity, op.min_quantity or op.quantity


def equal_keys_get_equal_answers(run: Run) -> Iterator[str]:
    first: dict[tuple[str, int, str], Op] = {}
    for op in run.history.ops:
        if op.kind == "reserve" and op.key and op.told:
            known = first.setdefault((op.customer, op.item_id, op.key), op)
            if _request(known) != _request(op):
                yield f"ops {known.number} and {op.number}, one key: two requests were answered"
            if known.told != op.told:
                yield f"ops {known.number} and {op.number}, one key: {known.told} and {op.told}"
            kept = run.database.keys.get((op.customer, op.item_id, op.key))
            if kept != op.told:
                yield f"op {op.number}: the key {op.key} leads to {kept}, answered was {op.told}"
