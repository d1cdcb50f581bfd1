"""Invariants about what happens at a hold's deadline: settling, and outages of the provider."""

from __future__ import annotations

from collections.abc import Iterator

from prove.judge.records import BEHIND_SECONDS, FOREVER, OrderRow, Place, Run, place_of, time_of

NOTICED_SECONDS = 5.0
"""An outage that takes up so much of a hold is noticed: the worker tries within two seconds, and
after ten failures says each second that the provider is down."""


def settling_is_short(run: Run) -> Iterator[str]:
    answered = _answers(run)
    for order in run.database.orders:
        if order.status != "expired" or not order.may_settle:
            continue
        deadline, ended = order.expires_at or 0.0, order.ended_at or FOREVER
        longest = deadline + run.database.items[order.item_id].settle_seconds
        known = max(deadline, answered.get(order.place, FOREVER))
        due = min(longest, known)
        if run.fair_seconds(due, max(due, ended)) > run.bound:
            yield f"{order.place} kept its unit until {ended - deadline:.3f} s after its deadline"
    for op in run.history.ops:
        place = op.told
        if place is None or op.body.get("status") != "settling":
            continue
        deadline = time_of(op.body["expires_at"])
        longest = deadline + run.database.items[place[0]].settle_seconds
        if run.wall(op.answered) < deadline:
            yield f"op {op.number}: {place} was shown settling before its deadline"
        elif run.fair_seconds(longest, max(longest, run.wall(op.asked))) > run.bound:
            yield f"op {op.number}: {place} was still settling after {longest:.3f}"


def _answers(run: Run) -> dict[Place, float]:
    """When the provider had voided the last session of each order.

    When we asked about a session that had ended otherwise, its ledger does not tell.
    """
    orders: dict[str, Place] = {}
    answered: dict[str, float] = {}
    for line in run.ledger:
        if line["kind"] == "opened" and line.get("order_id"):
            orders[line["session_id"]] = place_of(line["order_id"])
        elif line["kind"] == "moved" and line["to"] == "voided":
            answered[line["session_id"]] = time_of(line["at"])
        elif line["kind"] == "moved" and line["to"] == "failed" and not line.get("payable"):
            answered[line["session_id"]] = 0.0  # another attempt followed, or nothing was asked
    last: dict[Place, float] = {}
    for session, place in orders.items():
        last[place] = max(last.get(place, 0.0), answered.get(session, FOREVER))
    return {place: when or FOREVER for place, when in last.items()}


def nobody_loses_a_place_to_an_outage(run: Run) -> Iterator[str]:
    opened: dict[Place, float] = {}
    for line in run.ledger:
        if line["kind"] == "opened" and line.get("order_id"):
            opened[place_of(line["order_id"])] = time_of(line["at"])
    refused = {p.place: p.refused_at for p in run.database.payments if p.refused_at is not None}
    away_or_behind = [(start, stop + BEHIND_SECONDS) for start, stop in run.provider_outages]
    for order in run.database.orders:
        for begin, end in order.lost_holds:
            if not _away(away_or_behind + run.outages, begin, end):
                yield f"{order.place} lost a hold, and the provider was not down"
        if order.status != "expired" or opened.get(order.place, FOREVER) < (order.expires_at or 0):
            continue
        if refused.get(order.place, 0.0) >= (order.reserved_at or 0.0):
            continue
        away = _away_for(run, order)
        if away >= NOTICED_SECONDS:
            yield f"{order.place} expired; of its hold the provider was down for {away:.1f} s"


def _away(outages: list[tuple[float, float]], begin: float, end: float) -> bool:
    return any(start <= end and begin <= stop for start, stop in outages)


def _away_for(run: Run, order: OrderRow) -> float:
    """The seconds of an order's last hold during which the provider was down."""
    begin, end = order.reserved_at or 0.0, order.expires_at or 0.0
    away = [min(stop, end) - max(start, begin) for start, stop in run.provider_outages]
    return sum(seconds for seconds in away if seconds > 0)
