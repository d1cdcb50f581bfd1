"""The text of each mail, and the simulated sender."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
import pytest

from flashsale.settings import Settings
from flashsale.testing import Clock
from flashsale.worker.mail import LogSender, Notification, compose
from support import Connection, call, item, reserve, rows, sweep, value
from test_draw import draw, draw_item

MESSAGE = {
    "kind": "reserved",
    "order_id": "4294967297",
    "item_id": 1,
    "item_name": "Shoe",
    "customer_id": "ann",
    "expires_at": "2030-01-02T05:04:05.678+02:00",
    "checkout_url": "http://pay/s1",
}
KINDS = ["reserved", "your_turn", "paid", "expired", "cancelled", "refunded", "unserved"]
OF_DRAWS = ["entered", "placed"]


def notification(**changes: object) -> Notification:
    made: Notification = msgspec.convert(MESSAGE | changes, Notification)
    return made


def test_a_reservation_says_until_when_and_where_to_pay() -> None:
    mail = compose(notification(), 17)
    assert mail.to == "ann"
    assert mail.subject == "Shoe: reserved for you"
    assert "reserved until 2030-01-02 03:04:05 UTC, pay here: http://pay/s1" in mail.text
    assert "It is your turn" in compose(notification(kind="your_turn"), 17).text


@pytest.mark.parametrize("kind", [*KINDS, *OF_DRAWS])
def test_every_kind_of_mail_has_its_own_text(kind: str) -> None:
    mail = compose(notification(kind=kind), 17)
    others = [compose(notification(kind=k), 17) for k in [*KINDS, *OF_DRAWS] if k != kind]
    assert mail.subject not in [o.subject for o in others]
    assert mail.text not in [o.text for o in others]
    assert "4294967297" in mail.text


@pytest.mark.parametrize("kind", ["cancelled", "unserved", "refunded", "paid"])
def test_an_order_that_never_had_a_hold_can_be_explained(kind: str) -> None:
    mail = compose(notification(kind=kind, expires_at=None, checkout_url=None), 17)
    assert "None" not in mail.text


def test_a_message_id_is_the_same_each_time_and_unique_to_its_job() -> None:
    assert compose(notification(), 17).message_id == compose(notification(), 17).message_id
    assert compose(notification(), 17).message_id != compose(notification(), 18).message_id


async def test_the_simulated_mail_is_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "flashsale.mail")
    name = "Shoe\nmail: to='eve' \u2028\x1b[2J"
    await LogSender(Settings()).send(compose(notification(item_name=name, customer_id="a\nb"), 17))
    (line,) = caplog.messages
    assert line.isprintable()
    assert line.startswith("mail: to='a\\nb' id=<notification-17@flashsale>")


async def test_the_log_does_not_have_the_link_with_which_anybody_may_pay(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "flashsale.mail")
    mail = compose(notification(checkout_url="https://pay.example/sessions/s1?key=secret"), 17)
    assert "https://pay.example/sessions/s1?key=secret" in mail.text
    await LogSender(Settings()).send(mail)
    (line,) = caplog.messages
    assert "pay here: <link> (order 4294967297)" in line
    assert "secret" not in line and "pay.example" not in line


def test_every_kind_of_mail_that_the_database_enqueues_is_known(db: Connection) -> None:
    for kind in KINDS:
        order = reserve(db, item(db, sku=kind), "ann")
        if kind not in ("reserved", "your_turn"):
            call(db, "cancel", order.order_id)
        db.execute("delete from pgmq.q_notifications")
        value(db, "select flashsale.enqueue_mail(%s, %s)", kind, [order.order_id])
        (job,) = rows(db, "select * from flashsale.take_notifications(10, 30)")
        known = msgspec.convert(job.message, Notification)
        assert msgspec.to_builtins(known)["kind"] == kind
        assert known.order_id == str(order.order_id)
    sweep(db)


def mails(db: Connection) -> list[Any]:
    return [r.message for r in rows(db, "select * from flashsale.take_notifications(10, 1)")]


def test_who_enters_a_draw_is_told_so_and_later_their_place(db: Connection, clock: Clock) -> None:
    shoe = draw_item(db, clock, stock=1)
    ids = {name: str(reserve(db, shoe, name).order_id) for name in ("ann", "bob")}
    told = mails(db)
    assert [(m["kind"], m["order_id"]) for m in told] == [
        ("entered", ids["ann"]),
        ("entered", ids["bob"]),
    ]
    assert "you are in" in compose(msgspec.convert(told[0], Notification), 1).subject
    draw(db, clock)
    (place,) = (m for m in mails(db) if m["kind"] == "placed")  # the other one has a unit
    assert place["order_id"] in ids.values() and place["position"] == 1
    mail = compose(msgspec.convert(place, Notification), 1)
    assert "your place" in mail.subject and "Yours in the line is 1" in mail.text


def test_nobody_is_told_that_they_are_in_once_they_have_left(db: Connection, clock: Clock) -> None:
    shoe = draw_item(db, clock)
    entry = reserve(db, shoe, "ann")
    call(db, "cancel", entry.order_id)
    assert [m["kind"] for m in mails(db)] == ["cancelled"]
