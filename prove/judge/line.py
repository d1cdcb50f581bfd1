"""Invariants about the line: served in order, by tickets that respect time."""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby, pairwise

from prove.judge.records import FOREVER, OrderRow, Place, Run


def served_in_order(run: Run) -> Iterator[str]:
    for _item, orders in run.by_item():
        yield from _passed_over(orders)
        yield from _overtaken(run, orders)


def _passed_over(orders: list[OrderRow]) -> Iterator[str]:
    """Orders that were never served, although a later ticket was."""
    last = max((order.ticket for order in orders if order.reserved_at is not None), default=0)
    for order in orders:
        # One that has lost its hold to an outage was served before.
        left_out = order.status in ("waiting", "unserved") and not order.lost_holds
        if order.ticket < last and left_out:
            yield f"{order.place} is {order.status}, but ticket {last} was served"


def _overtaken(run: Run, orders: list[OrderRow]) -> Iterator[str]:
    """Orders that were served while one with a lower ticket went on waiting."""
    # left: orders with lower tickets, by when they stopped waiting, the longest wait first
    left: list[tuple[float, float, Place]] = []
    for order in orders:
        for number, (served, _) in enumerate(order.holds):
            while not number and left and -left[0][0] <= served:
                heapq.heappop(left)  # first grants are nearly in time order too
            if left and -left[0][0] > served:
                gone, since, place = -left[0][0], left[0][1], left[0][2]
                begin = max(served, since)
                if run.fair_seconds(begin, min(gone, run.database.now)) > run.bound:
                    yield f"{order.place} was served before {place}, which went on waiting"
        for since, gone in order.waits:
            heapq.heappush(left, (-gone, since, order.place))


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
