"""Invariants about units: never oversold, and never idle while somebody waits."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from itertools import accumulate, groupby

from prove.judge.records import FOREVER, ItemRow, OrderRow, Run


def never_oversold(run: Run) -> Iterator[str]:
    for item, orders in run.by_item():
        # A withdrawal takes free units only, so it never makes the live units exceed the stock.
        steps = [c for c in run.stock_changes(item.item_id, at_most=True) if c[1] > 0]
        for order in orders:
            for begin, end in order.lost_holds:
                steps += [(begin, -1), (end, 1)]
            if order.reserved_at is not None and order.expires_at is not None:
                steps.append((order.reserved_at, -1))
                if order.ended_at is not None:
                    steps.append((order.ended_at, 1))
        free = run.stock[item.item_id]
        for when, step in sorted(steps, key=lambda s: (s[0], -s[1])):
            free += step
            if free < 0:
                yield f"item {item.item_id}: {-free} units too many at {when:.6f}"
                break
        held = sum(
            order.status in ("reserved", "settling", "paid") and order.reserved_at is not None
            for order in orders
        )
        if held > item.stock:
            yield f"item {item.item_id}: {held} units held or paid in the end, stock {item.stock}"


def freed_units_are_offered_again(run: Run) -> Iterator[str]:
    for item, orders in run.by_item():
        end = min(run.database.now, item.closes_at or FOREVER)
        has_groups = any(order.quantity > 1 for order in orders)
        yield from (_idle_with_groups if has_groups else _idle)(run, item, orders, end)


def _idle(run: Run, item: ItemRow, orders: list[OrderRow], end: float) -> Iterator[str]:
    """Of an item whose orders are for one unit: units that were free while anybody waited."""
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


def _idle_with_groups(run: Run, item: ItemRow, orders: list[OrderRow], end: float) -> Iterator[str]:
    """Of an item with groups: orders for which enough units were free, and which went on waiting.

    The units that are free at a moment belong to the first tickets that wait then. So a group may
    keep units from the orders behind it, as long as these are too few for it.
    """
    heads = {o.ticket: o for o in orders if o.is_order}
    moves = [(when, units, 0, 0) for when, units, _ in _steps(run, item, orders)]
    for order in orders:
        for begin, gone in order.waits:
            moves += [(begin, 0, 1, order.ticket), (gone, 0, -1, order.ticket)]
    head_of = {o.ticket: o.head or o.ticket for o in orders}
    free, line = run.stock[item.item_id], list[int]()
    since: dict[int, float] = {}  # when orders that wait had enough units in front of them
    moves = [*sorted(move for move in moves if move[0] < FOREVER), (end, 0, 0, 0)]
    for when, at_once in groupby(moves, lambda move: move[0]):
        for head, begin in since.items():
            until = min(when, end)
            if until - begin > run.bound and run.fair_seconds(begin, until) > run.bound:
                yield (
                    f"item {item.item_id}: {heads[head].min_quantity} units were free for "
                    f"{heads[head].place} for {until - begin:.3f} s until {until:.6f}"
                )
                return
        for _, units, joined, ticket in at_once:
            free += units
            if joined > 0:
                insort(line, ticket)
            elif joined:
                line.remove(ticket)
        served = Counter(head_of[ticket] for ticket in line[: max(0, free)])
        since = {
            head: since.get(head, when)
            for head, count in served.items()
            if head in heads and count >= heads[head].min_quantity
        }


def _steps(run: Run, item: ItemRow, orders: list[OrderRow]) -> list[tuple[float, int, int]]:
    """Steps in time: when, the change of certainly free units, and that of waiting orders."""
    steps = [(when, units, 0) for when, units in run.stock_changes(item.item_id, at_most=False)]
    for burned, order in _burned(item, orders):
        steps += [(burned - run.bound, -1, 0), (max(burned, order.ended_at or burned), 1, 0)]
    for order in orders:
        for begin, end in order.holds:
            steps += [(begin, -1, 0), (end, 1, 0)]
        for begin, end in order.waits:
            steps += [(begin, 0, 1), (end, 0, -1)]
    steps = [step for step in steps if step[0] < FOREVER]
    return sorted(steps)


def _burned(item: ItemRow, orders: list[OrderRow]) -> Iterator[tuple[float, OrderRow]]:
    """Void tickets, with the time by which they must have been given out.

    Such a ticket keeps a unit, once the line has reached it, until it is found to be void.
    """
    known = orders[0].created_at
    for order in orders:
        if not order.is_void:
            known = max(known, order.created_at)
        elif order.ticket <= item.now_serving:
            yield known, order


def burned_tickets_are_found(run: Run) -> Iterator[str]:
    for item, orders in run.by_item():
        following = FOREVER
        for order in reversed(orders):  # the next ticket was given out later than this one
            if not order.is_void:
                following = min(following, order.created_at)
            elif following < FOREVER and order.ticket <= item.now_serving:
                blind = run.fair_seconds(following, order.ended_at or run.database.now)
                if blind > run.bound:
                    yield f"{order.place} was burned, which took {blind:.3f} s to find"


def nobody_waits_without_need(run: Run) -> Iterator[str]:
    answers = defaultdict(list)
    for op in run.history.ops:
        if op.kind == "reserve" and op.status in (201, 202) and op.told:
            answers[op.item_id].append(op)
    for item, orders in run.by_item():
        steps = _steps(run, item, orders)
        times = [when for when, _, _ in steps]
        free = list(accumulate((units for _, units, _ in steps), initial=run.stock[item.item_id]))
        taken = list(accumulate((max(0, -units) for _, units, _ in steps), initial=0))
        waits = [(o.ticket, *wait) for o in orders for wait in o.waits]
        for op in answers[item.item_id]:
            begin, end = run.wall(op.asked) - run.bound, run.wall(op.answered)
            first, last = bisect_right(times, begin), bisect_right(times, end)
            assert op.told
            group = run.groups.get(op.told)
            enough = group.order.min_quantity if group else 1
            if op.status == 201:
                if not group or not group.given_up:
                    continue
                enough = 1  # for one of the parts that it was granted without
            # Only units that were free during all of that time count.
            if free[first] - (taken[last] - taken[first]) < enough:
                continue
            ahead = any(
                ticket < op.told[1] and came < end and left > begin for ticket, came, left in waits
            )
            if not ahead and run.fair_seconds(begin, end) > run.bound:
                yield f"op {op.number}: told to wait as {op.told} while a unit was free"
