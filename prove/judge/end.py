"""Invariants about the end of a run: nothing is left over."""

from __future__ import annotations

from collections.abc import Iterator

from prove.judge.records import ItemRow, OrderRow, Run


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
        longest = item.settle_seconds if order.status == "settling" else 0
        over = (order.expires_at or 0) + longest < run.database.now - run.bound
        if order.status in ("reserved", "settling") and over:
            yield f"{order.place} is past its deadline and still holds a unit"
        group = run.groups.get(order.place)
        if group and order.status == "waiting" and group.need <= item.now_serving:
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
