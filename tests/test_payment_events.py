"""Events are stored before they are judged: what can't be used is kept, shown and never lost."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from money_support import event, marks, open_sessions, payments
from support import Connection, item, many, one, reserve, rows, status, value

RECORD = f"select flashsale.record_payment_event({marks([0] * 9)})"


@pytest.mark.parametrize(
    ("kind", "broken"),
    [
        ("succeeded", {"currency": "eur"}),
        ("succeeded", {"currency": None}),
        ("succeeded", {"currency": "EURO"}),
        ("succeeded", {"amount": None}),
        ("succeeded", {"amount": 0}),
        ("succeeded", {"amount": -5}),
        ("succeeded", {"amount": 2**63 - 1}),
        ("succeeded", {"session": None}),
        ("succeeded", {"session": ""}),
        ("succeeded", {"session": "s" * 256}),
        ("succeeded", {"payment_id": "p" * 256}),
        ("failed", {"session": None}),
        ("voided", {"session": None}),
        ("refunded", {"session": ""}),
        ("any", {"type": None}),
        ("any", {"type": ""}),
        ("any", {"type": "t" * 256}),
    ],
)
def test_an_event_that_nobody_can_use_is_stored_and_shown(
    db: Connection, kind: str, broken: dict[str, Any]
) -> None:
    order = reserve(db, item(db), "ann")
    open_sessions(db)
    broken = broken | {"payload": "as it came", "event_id": "e1"}
    assert event(db, kind, order, **broken) == "unusable"
    assert event(db, kind, order, **broken) == "duplicate"
    shown = one(db, "select * from flashsale.unusable_event")
    assert (shown.event_id, shown.payload) == ("e1", "as it came")
    assert one(db, "select * from flashsale.payment_event").outcome == "unusable"
    assert payments(db) == [("open", None)]
    assert status(db, order.order_id).status == "reserved"


@pytest.mark.parametrize("event_id", [None, "", "e" * 256])
def test_an_event_without_a_name_gets_one_from_its_content(
    db: Connection, event_id: str | None
) -> None:
    ann, bob = many(db, item(db, stock=2), ["ann", "bob"])
    for order, outcome in [(ann, "paid"), (ann, "duplicate"), (bob, "paid")]:
        told = event(db, "succeeded", order, event_id=event_id, payload=f"{order.order_id}")
        assert told == outcome
    names = rows(db, "select event_id from flashsale.payment_event")
    assert all(row.event_id.startswith("sha256:") for row in names)


@pytest.mark.parametrize("kind", ["disputed", "created"])
def test_other_events_are_stored_and_ignored_with_or_without_a_session(
    db: Connection, kind: str
) -> None:
    order = reserve(db, item(db), "ann")
    assert event(db, kind, order) == "ignored"
    assert event(db, kind, order, session=None, amount=None, currency=None) == "ignored"
    assert rows(db, "select * from flashsale.unusable_event") == []


def test_only_an_unusable_event_keeps_its_payload_and_no_more_than_64_k(db: Connection) -> None:
    order = reserve(db, item(db), "ann")
    event(db, "succeeded", order, payload="x" * 70_000)
    event(db, "succeeded", order, currency="eur", payload="y" * 70_000)
    kept = [row.payload for row in rows(db, "select payload from flashsale.payment_event")]
    assert sorted(len(text or "") for text in kept) == [0, 65_536]


def test_whatever_a_provider_sends_is_stored(db: Connection) -> None:
    """Every combination of odd values: no error, and a row for each that is not a duplicate."""
    names = ["payment.succeeded", "payment.failed", "payment.voided", "payment.refunded", "x", None]
    texts = [None, "", "s1", "s" * 300]
    payment_ids = [None, "", "abc", "1" * 18, "9" * 300]
    moneys = [(None, None), (-1, "EUR"), (1000, "eur"), (1000, "EUR"), (2**63 - 1, "€" * 300)]
    times = [None, "infinity", "-infinity", "0001-01-01"]
    odd = itertools.cycle(times)
    for n, (name, session, payment_id, money) in enumerate(
        itertools.product(names, texts, payment_ids, moneys)
    ):
        told = value(
            db, RECORD, f"e{n}", name, session, payment_id, *money, next(odd), "payload", n % 2 == 0
        )
        assert told in ("unusable", "ignored", "stray", "refund_due", "refunded")
    assert value(db, "select count(*) from flashsale.payment_event") == n + 1
