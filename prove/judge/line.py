"""Invariants about the line: served in order, by tickets that respect time."""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Iterator
from itertools import groupby, pairwise

from prove.judge.records import FOREVER, SAME, Group, ItemRow, OrderRow, Place, Run


def served_in_order(run: Run) -> Iterator[str]:
    for item, groups in _by_item(run):
        yield from _passed_over(run, item, groups)
        yield from _overtaken(run, groups)


def _by_item(run: Run) -> Iterator[tuple[ItemRow, list[Group]]]:
    """The orders of each item, in the order in which the line reaches what they need."""
    of_items: dict[int, list[Group]] = defaultdict(list)
    for group in run.groups.values():
        of_items[group.order.item_id].append(group)
    for item_id, groups in of_items.items():
        yield run.database.items[item_id], sorted(groups, key=lambda group: group.need)


def _passed_over(run: Run, item: ItemRow, groups: list[Group]) -> Iterator[str]:
    """Orders that were never served, although a later ticket was."""
    last = max((row.ticket for group in groups for row in group.granted), default=0)
    for group in groups:
        order = group.order
        # One that has lost its hold to an outage was served before.
        left_out = order.status in ("waiting", "unserved") and not order.lost_holds
        if group.need < last and left_out and not _in_vain(run, item, order):
            yield f"{order.place} is {order.status}, but ticket {last} was served"


def _in_vain(run: Run, item: ItemRow, order: OrderRow) -> bool:
    """Whether it is a group that has had its time, so that its units have moved on."""
    if order.quantity == 1 or order.status != "unserved" or order.part_served_at is None:
        return False
    return (order.ended_at or FOREVER) - order.part_served_at >= item.hold_seconds - SAME


def _overtaken(run: Run, groups: list[Group]) -> Iterator[str]:
    """Orders that were served while one went on waiting that needed only lower tickets."""
    # left: orders that need lower tickets, by when they stopped waiting, the longest wait first
    left: list[tuple[float, float, Place]] = []
    waiting = deque(groups)
    for top, group in sorted((g.granted[-1].ticket, g) for g in groups if g.granted):
        order = group.order
        while waiting and waiting[0].need < top:
            other = waiting.popleft().order
            for since, gone in other.waits:
                heapq.heappush(left, (-gone, since, other.place))
        for number, (served, _) in enumerate(order.holds):
            while not number and left and -left[0][0] <= served:
                heapq.heappop(left)  # first grants are nearly in time order too
            first = left[0] if left else None
            if first and first[2] == order.place:  # its own wait: it had enough before its last one
                first = next(iter(heapq.nsmallest(2, left)[1:]), None)
            if first and -first[0] > served:
                gone, since, place = -first[0], first[1], first[2]
                begin = max(served, since)
                if run.fair_seconds(begin, min(gone, run.database.now)) > run.bound:
                    yield f"{order.place} was served before {place}, which went on waiting"


def set_aside_units_move_on(run: Run) -> Iterator[str]:
    for item, groups in _by_item(run):
        for group in groups:
            order, began = group.order, group.order.part_served_at
            if order.quantity == 1 or began is None or not order.waits:
                continue
            gone = min(order.waits[0][1], run.database.now)
            kept_for = run.fair_seconds(began, max(began, gone))
            if kept_for > item.hold_seconds + run.bound:
                yield f"{order.place} kept units for {kept_for:.3f} s before it had enough"
            at_the_end = item.closes_at is not None and gone >= item.closes_at - SAME
            if order.status == "unserved" and not at_the_end and not _in_vain(run, item, order):
                yield f"{order.place} was given up {gone - began:.3f} s after its first ticket"


def groups_get_what_is_there(run: Run) -> Iterator[str]:
    for _, groups in _by_item(run):
        for group in groups:
            if wrong := _wrong_group(group):
                yield f"{group.order.place} {wrong}"
    for part in run.database.orders:
        if part.head is not None and (part.item_id, part.head) not in run.groups:
            yield f"{part.place} is a part of no order"


def _wrong_group(group: Group) -> str | None:
    order, parts = group.order, group.parts
    if len(parts) != order.quantity - 1:
        return f"asked for {order.quantity} units, and has {len(parts)} parts"
    if not 1 <= order.min_quantity <= order.quantity:
        return f"asked for {order.quantity} units, at least {order.min_quantity}"
    granted = order.units if order.reserved_at is not None or order.lost_holds else None
    if granted is not None and not order.min_quantity <= granted <= order.quantity:
        return f"got {granted} units of {order.quantity}, at least {order.min_quantity}"
    if granted is not None and len(group.granted) != granted:
        return f"got {granted} units, with the tickets of {len(group.granted)}"
    for part in parts:
        together = (part.status, part.ended_at) == (order.status, order.ended_at)
        if not together and part not in group.given_up:
            return f"is {order.status}, and its part {part.ticket} {part.status}"
    for part in group.given_up:
        if part.ended_at is None:
            return f"was granted without its part {part.ticket}, which has not ended"
    return None


def limits_hold(run: Run) -> Iterator[str]:
    mine: dict[tuple[str, int], list[OrderRow]] = defaultdict(list)
    late = {order.late for order in run.database.orders if order.late}
    for order in run.database.orders:
        if order.customer is not None:
            mine[order.customer, order.product].append(order)
    for orders in mine.values():
        for order in orders:
            item = run.database.items[order.item_id]
            if order.quantity > item.max_per_order and order.place not in late:
                yield f"{order.place} asks for {order.quantity}, allowed are {item.max_per_order}"
            had = sum(_units_bought(it, order.created_at) for it in orders if it is not order)
            if had + order.quantity > item.limit:
                yield (
                    f"{order.customer} had {had} units and asked for {order.quantity} as "
                    f"{order.place}, allowed are {item.limit}"
                )


def _units_bought(order: OrderRow, when: float) -> int:
    """How many units of an order were paid at a time."""
    if order.paid_at is None or order.paid_at > when or (order.ended_at or FOREVER) <= when:
        return 0
    return order.units or 1


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
            lives[order.customer, order.product].append(order)
    for orders in lives.values():
        orders.sort(key=lambda order: order.created_at)
        for one, following in pairwise(orders):
            over = one.paid_at if one.may_buy_again and one.paid_at else FOREVER
            if following.created_at < min(one.ended_at or FOREVER, one.released_at, over):
                yield f"{one.place} was live when {one.customer} got {following.place}"
