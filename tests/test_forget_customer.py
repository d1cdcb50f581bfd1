"""forget_customer: the books stay, without the customer."""

from __future__ import annotations

from datetime import timedelta

import psycopg
import pytest

from erasing_support import buy, columns_named, places_of, still_open, work
from flashsale.testing import Clock
from interleave import interleave, threaded_sessions
from support import Connection, call, connect, item, pay, reserve, rows, settle, status, value

FORGET = "select * from flashsale.forget_customer(%s, 'asked us to')"
ANN = "ann@example.com"

COVERED = {
    "orders": "gets the pseudonym",
    "order_keys": "its rows are deleted",
    "request_keys": "its rows are deleted",
    "payments": "loses the link of the checkout",
    "offline_references": "the till's name of a payment, which the books need",
    "history": "gets the pseudonym where staff have written the customer's id",
    "items": "of nobody",
    "tallies": "of nobody",
    "sweep_failures": "of nobody",
    "withdrawn_tickets": "of nobody",
    "deleting_items": "of nobody",
    "outbox": "of nobody: events() takes the customer from orders, and so shows the pseudonym",
    "events": "of nobody: events() takes the customer from orders, and so shows the pseudonym",
    "feed_lines": "of nobody",
    "draws": "of nobody",
    "drawn_entries": "of nobody: it leads from one id of an order to the other",
    "draw_hashes": "of nobody",
}
"""What forget_customer does with each table that names customers, or what belongs to them."""


def test_forget_customer_knows_every_table_that_names_somebody(db: Connection) -> None:
    """A new table has to be added to flashsale.put_pseudonym, or to this list with a reason."""
    found = columns_named(db, "customer_id", "item_id", "order_id", "scope")
    assert found == set(COVERED)


def test_nothing_names_a_forgotten_customer_any_more(db: Connection) -> None:
    shoe, hat = item(db, stock=5), item(db, "hat", stock=5)
    first = buy(db, shoe, ANN, f"key of {ANN}")
    buy(db, hat, ANN)
    call(db, "refund_order", first.order_id, f"{ANN} is ill", True, "eve")
    work(db)
    again = reserve(db, shoe, ANN)
    call(db, "cancel", again.order_id, ANN, None, None, "key of a cancel")
    work(db)
    bob = buy(db, shoe, "bob", "key of bob")
    assert places_of(db, ANN) != []
    told = call(db, "forget_customer", ANN, f"{ANN} has asked us to, by post", "eve")
    assert (told.orders, len(told.pseudonym)) == (3, 46)
    assert places_of(db, ANN) == []
    assert places_of(db, "https://pay/") == ["flashsale_data.payments.checkout_url"], "bob's"
    assert status(db, first.order_id).customer_id == told.pseudonym
    assert status(db, first.order_id).status == "refunded"
    assert status(db, bob.order_id).customer_id == "bob"
    assert reserve(db, shoe, "bob", "key of bob").order_id == bob.order_id
    (noted,) = rows(db, "select * from flashsale.history where action = 'forget_customer'")
    assert (noted.staff, noted.before) == ("eve", None)
    assert noted.after == {"pseudonym": told.pseudonym, "orders": 3}
    assert noted.reason == f"{told.pseudonym} has asked us to, by post"


def test_the_feed_shows_the_pseudonym_of_a_forgotten_customer(db: Connection) -> None:
    order = buy(db, item(db), ANN)
    call(db, "publish_events")
    read = "select data ->> 'customer_id' as customer from flashsale.events() where order_id = %s"
    told_before = [e.customer for e in rows(db, read, order.order_id)]
    assert set(told_before) == {ANN}
    told = call(db, "forget_customer", ANN, "asked us to")
    assert [e.customer for e in rows(db, read, order.order_id)] == [
        told.pseudonym for _ in told_before
    ]


def test_the_money_stays_in_the_books(db: Connection) -> None:
    order = buy(db, item(db), ANN)
    before = rows(
        db, "select payment_id, order_id, amount, status, session_id from flashsale_data.payments"
    )
    call(db, "forget_customer", ANN, "asked us to")
    assert before == rows(
        db, "select payment_id, order_id, amount, status, session_id from flashsale_data.payments"
    )
    assert status(db, order.order_id).status == "paid"


def test_a_name_is_replaced_only_where_it_is_a_word_of_its_own(db: Connection) -> None:
    without = "select flashsale.without_name(%s, %s, 'X')"
    assert value(db, without, "1 paid 10 for 1, not 21", "1") == "X paid 10 for X, not 21"
    assert value(db, without, "a.b axb (a.b)", "a.b") == "X axb (X)"
    assert value(db, without, r"\1 [a] \ ", r"\1 [a] \ ".strip()) == "X "
    facts = "select flashsale.without_name_in(%s, %s, 'X')::text"
    assert value(db, facts, '{"who": "a\\"b", "n": 1}', 'a"b') == '{"n": 1, "who": "X"}'
    assert value(db, facts, '{"who": "10", "n": 1}', "1") == '{"n": 1, "who": "10"}'


def test_forgetting_again_changes_nothing(db: Connection) -> None:
    buy(db, item(db), ANN)
    told = call(db, "forget_customer", ANN, "asked us to")
    for customer in (ANN, told.pseudonym, "nobody"):
        again = call(db, "forget_customer", customer, "asked us to")
        assert (again.pseudonym, again.orders) == (None, 0)
    assert value(db, "select count(*) from flashsale.history where action ~ 'forget'") == 1


def test_the_same_customer_later_is_a_new_customer(db: Connection) -> None:
    shoe = item(db, stock=2)
    old = buy(db, shoe, ANN, "k")
    told = call(db, "forget_customer", ANN, "asked us to")
    new = reserve(db, shoe, ANN, "k")
    assert (new.outcome, new.ticket) == ("reserved", 2), "neither the limit nor the key is theirs"
    orders = rows(db, "select order_id from flashsale.orders_of(%s)", ANN)
    assert [o.order_id for o in orders] == [new.order_id]
    with pytest.raises(psycopg.Error, match="no such order"):
        call(db, "order_status", old.order_id, ANN)
    call(db, "cancel", new.order_id)
    work(db)
    assert call(db, "forget_customer", ANN, "again").pseudonym != told.pseudonym


def test_what_is_open_is_refused_and_listed(db: Connection) -> None:
    shoe = item(db, stock=1)
    held = reserve(db, shoe, ANN)
    hat = item(db, "hat", stock=0)
    waits = reserve(db, hat, ANN)
    detail = still_open(db, FORGET, ANN)
    assert f"order {held.order_id} is reserved" in detail
    assert f"order {waits.order_id} is waiting" in detail
    assert f"a job (open) for order {held.order_id}" in detail
    call(db, "cancel", waits.order_id)
    work(db)
    assert f"payment {held.payment_id} of order {held.order_id} is open" in still_open(
        db, FORGET, ANN
    )
    pay(db, held)
    assert f"an e-mail (paid) about order {held.order_id}" == still_open(db, FORGET, ANN)
    work(db)
    call(db, "refund_order", held.order_id, "sick")
    detail = still_open(db, FORGET, ANN)
    assert f"payment {held.payment_id} of order {held.order_id} is refund_due" in detail
    db.execute("update pgmq.q_payments set read_ct = 1000")
    work(db)
    (letter,) = rows(db, "select * from flashsale.dead_letter")
    detail = still_open(db, FORGET, ANN)
    assert f"dead letter {letter.dead_letter_id} (refund) for order {held.order_id}" in detail
    assert places_of(db, ANN) == ["flashsale_data.orders.customer_id"], "nothing has changed"
    call(db, "retry_dead_letter", letter.dead_letter_id)
    work(db)
    assert call(db, "forget_customer", ANN, "asked us to").orders == 2


def test_a_settling_order_is_open(db: Connection, clock: object) -> None:
    shoe = item(db, settle_seconds=60)
    order = reserve(db, shoe, ANN)
    work(db)
    clock.advance(61)  # type: ignore[attr-defined]
    call(db, "sweep")
    assert f"order {order.order_id} is settling" in still_open(db, FORGET, ANN)


def test_an_e_mail_that_nobody_could_deliver_is_not_in_the_way(db: Connection) -> None:
    order = reserve(db, item(db), ANN)
    call(db, "cancel", order.order_id)
    db.execute("update pgmq.q_notifications set read_ct = 1000")
    work(db)
    assert len(rows(db, "select * from flashsale.dead_letter")) == 1
    call(db, "forget_customer", ANN, "asked us to")
    assert rows(db, "select * from flashsale.dead_letter") == []


def test_what_names_an_entry_belongs_to_the_order_that_was_drawn_from_it(
    db: Connection, clock: Clock
) -> None:
    shoe = item(db, stock=1, draw=True, opens_at=clock.at() + timedelta(seconds=60))
    entry = reserve(db, shoe, ANN, "k")
    clock.advance(61)
    settle(db)
    assert status(db, entry.order_id).status == "reserved"
    drawn = value(db, "select order_id from flashsale_data.drawn_entries")
    assert drawn != entry.order_id
    db.execute("update pgmq.q_notifications set vt = 'infinity' where message ->> 'order_id' = %s",
               (str(entry.order_id),))  # fmt: skip
    call(db, "cancel", entry.order_id)
    work(db)
    assert still_open(db, FORGET, ANN) == f"an e-mail (entered) about order {drawn}"
    db.execute("update pgmq.q_notifications set vt = '-infinity', read_ct = 1000")
    work(db)
    assert len(rows(db, "select * from flashsale.dead_letter")) == 1
    call(db, "forget_customer", ANN, "asked us to")
    assert rows(db, "select * from flashsale.dead_letter") == []
    assert places_of(db, ANN) == []


def test_an_event_that_nobody_could_use_is_forgotten_too(db: Connection) -> None:
    order = buy(db, item(db), ANN)
    record = (
        "select flashsale.record_payment_event(%s, 'payment.failed', %s, %s, null, null, null, %s)"
    )
    value(db, record, "e1", None, "x" * 300, f'{{"customer": "{ANN}"}}')
    value(db, record, "e2", f"s{order.payment_id}", "x" * 300, '{"card": "of somebody"}')
    value(db, record, "e3", "s of another", "x" * 300, '{"card": "of another"}')
    call(db, "forget_customer", ANN, "asked us to")
    kept = rows(db, "select event_id, payload from flashsale_data.payment_events order by 1")
    assert [k.payload for k in kept] == [None, None, '{"card": "of another"}']


def test_late_money_of_a_forgotten_customer_goes_back(db: Connection, clock: object) -> None:
    shoe = item(db, late_payment="keep_if_free", settle_seconds=0)
    order = reserve(db, shoe, ANN)
    work(db)
    clock.advance(61)  # type: ignore[attr-defined]
    call(db, "sweep")
    work(db)
    call(db, "forget_customer", ANN, "asked us to")
    assert pay(db, order).outcome == "refund_due"
    work(db)
    assert status(db, order.order_id).payment_status == "refunded"
    assert value(db, "select count(*) from pgmq.q_notifications") == 0, "and nobody is told"


@pytest.mark.parametrize("customer", ["", None, "c" * 129])
def test_what_is_no_customer_is_refused(db: Connection, customer: str | None) -> None:
    with pytest.raises(psycopg.Error) as error:
        call(db, "forget_customer", customer, "asked us to")
    assert error.value.sqlstate == "RV302"


def test_a_customer_whose_id_would_not_be_taken_today_can_be_forgotten(db: Connection) -> None:
    order = buy(db, item(db), "c1")
    db.execute("update flashsale_data.orders set customer_id = E'c1\\r'")
    assert call(db, "forget_customer", "c1\r", "asked us to").orders == 1
    assert status(db, order.order_id).customer_id.startswith("forgotten-")


def test_a_reason_is_needed(db: Connection) -> None:
    for reason in (None, "", "a\nb"):
        with pytest.raises(psycopg.Error) as error:
            call(db, "forget_customer", ANN, reason)
        assert error.value.sqlstate == "RV302"


def test_a_request_of_the_same_moment_is_that_of_a_new_customer(
    db: Connection, database_url: str
) -> None:
    """Whichever comes first, nothing is half forgotten, and nobody waits for ever."""
    for n, order in enumerate([(0, 0, 0, 1), (0, 0, 1, 0), (0, 1, 0, 0), (1, 0, 0, 0)]):
        shoe, hat = item(db, f"shoe {n}", stock=2), item(db, f"hat {n}", stock=2)
        buy(db, shoe, ANN, "k")
        db.commit()
        with threaded_sessions(database_url, 2) as sessions:
            steps = [
                [
                    lambda c: c.execute("begin"),
                    lambda c: c.execute(
                        "select from flashsale.reserve_many(%s, %s, %s)",
                        [[shoe, hat], [ANN, ANN], ["k2", "k"]],  # noqa: B023
                    ),
                    lambda c: c.execute("commit"),
                ],
                [lambda c: c.execute("select flashsale.forget_customer(%s, 'asked')", [ANN])],
            ]
            errors = interleave(db, sessions, steps, order)
        assert {e.sqlstate for e in errors} <= {"RV212"}, "the new order may be seen as open"
        db.execute(
            "select flashsale.cancel(order_id) from flashsale_data.orders where status = 'reserved'"
        )
        work(db)
        call(db, "forget_customer", ANN, "asked")
        assert places_of(db, ANN) == []
        assert rows(db, "select * from flashsale.violation") == []


def test_money_of_the_same_moment_is_seen(db: Connection, database_url: str) -> None:
    order = reserve(db, item(db), ANN)
    work(db)
    with connect(database_url, autocommit=False) as paying:
        pay(paying, order)
        with threaded_sessions(database_url, 1) as (session,):
            session.submit(lambda c: c.execute(FORGET, [ANN]))
            from support import blocked, eventually

            eventually(lambda: blocked(db, session.conn))
            paying.commit()
            assert session.idle(10)
            assert [e.sqlstate for e in session.errors] == ["RV212"], "its e-mail is to be sent"
