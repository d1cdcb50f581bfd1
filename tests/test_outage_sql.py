"""An outage of the payment provider costs nobody their place, and it goes on by itself."""

from __future__ import annotations

from collections import deque
from typing import Any

import psycopg
import pytest

from flashsale.testing.clock import Clock
from money_support import (
    captured,
    event,
    kinds,
    mails,
    make_due,
    open_session,
    open_sessions,
    payments,
    refused,
    story,
    take,
    unavailable,
    voided,
)
from support import (
    Connection,
    call,
    connect,
    item,
    item_status,
    many,
    one,
    pay,
    reserve,
    rows,
    settle,
    status,
    statuses,
    sweep,
    value,
)

NAMES = ["ann", "bob", "cid", "dan", "eve"]


def down(db: Connection, is_down: bool = True) -> None:
    call(db, "note_provider", is_down)


def come_due(db: Connection, clock: Clock, order: Any) -> None:
    """The provider does not answer, and the order's deadline passes."""
    (job,) = take(db)
    unavailable(db, job)
    clock.set(order.expires_at)


@pytest.mark.parametrize("known", ["by the tries", "by the breaker", "by both"])
def test_nobody_loses_their_place_and_it_goes_on_by_itself(
    db: Connection, clock: Clock, known: str
) -> None:
    shoe = item(db, hold_seconds=2)
    many(db, shoe, NAMES)
    for _ in range(11):
        if known != "by the breaker":
            make_due(db)
            for job in take(db):
                assert unavailable(db, job) == "retry"
        if known != "by the tries":
            down(db)
        clock.advance(1)
        settle(db)
        assert set(statuses(db, shoe).values()) <= {"waiting", "reserved"}
    assert mails(db) == []
    assert rows(db, "select * from flashsale.dead_letter") == []
    down(db, False)
    settle(db)
    assert [name for name, shown in statuses(db, shoe).items() if shown == "reserved"] == ["ann"]
    make_due(db)
    while jobs := take(db):
        for job in jobs:
            if job.kind == "open":
                open_session(db, job)
            else:
                voided(db, job)
    order = one(db, "select * from flashsale.order_status where customer_id = 'ann'")
    assert (order.ticket, order.payment_status) == (1, "open")
    assert pay(db, order).outcome == "paid"
    assert [mail for mail in mails(db) if mail[0] != "your_turn"] == [("paid", "ann")]


def test_a_job_that_opens_a_session_is_retried_as_long_as_its_hold_lives(
    db: Connection, clock: Clock
) -> None:
    order = reserve(db, item(db, hold_seconds=1800), "ann")
    for _ in range(400):
        make_due(db)
        (job,) = take(db)
        assert job.tries == 1
        assert unavailable(db, job) == "retry"
        pause = "select extract(epoch from vt - clock_timestamp())::float8 from pgmq.q_payments"
        assert value(db, pause) <= 2
    clock.advance(300)
    make_due(db)
    (job,) = take(db)
    assert open_session(db, job) == "opened"
    shown = status(db, order.order_id)
    assert (shown.status, shown.payment_status) == ("reserved", "open")
    assert shown.expires_at == order.expires_at


def test_the_job_of_a_hold_that_went_back_is_retried_until_the_provider_answers(
    db: Connection, clock: Clock
) -> None:
    """While the provider is down nobody is promoted: nothing else notices that it is back."""
    order = reserve(db, item(db), "ann")
    come_due(db, clock, order)
    down(db)
    sweep(db)
    assert status(db, order.order_id).status == "waiting"
    for _ in range(20):
        make_due(db)
        (job,) = [job for job in take(db) if job.kind == "open"]
        assert unavailable(db, job) == "retry"
        pause = "select extract(epoch from vt - clock_timestamp())::float8 from pgmq.q_payments"
        assert value(db, pause + " where message ->> 'kind' = 'open'") <= 2
    make_due(db)
    (job,) = [job for job in take(db) if job.kind == "open"]
    assert refused(db, job) == "retry"
    value(db, "update pgmq.q_payments set read_ct = 9 returning msg_id")
    make_due(db)
    (job,) = [job for job in take(db) if job.kind == "open"]
    assert refused(db, job) == "dead"


def test_what_the_provider_refuses_is_given_up_as_ever(db: Connection, clock: Clock) -> None:
    order = reserve(db, item(db), "ann")
    for tries in range(1, 11):
        make_due(db)
        (job,) = take(db)
        assert refused(db, job) == ("dead" if tries == 10 else "retry")
    assert status(db, order.order_id).payment_status == "failed"
    down(db)  # too late to be the reason
    clock.advance(60)
    down(db)
    assert status(db, order.order_id).status == "expired"
    assert sweep(db).recycled == 1


@pytest.mark.parametrize("last", [refused, unavailable])
def test_the_last_try_tells_whether_the_provider_has_refused(
    db: Connection, clock: Clock, last: object
) -> None:
    order = reserve(db, item(db), "ann")
    for answer in (refused, unavailable, last):
        make_due(db)
        (job,) = take(db)
        answer(db, job)  # type: ignore[operator]
    clock.advance(60)
    expected = "expired" if last is refused else "waiting"
    assert status(db, order.order_id).status == expected
    db.execute("select flashsale.expire()")
    assert status(db, order.order_id).status == expected


def test_while_the_provider_is_down_nobody_is_promoted_and_sweeps_have_nothing_to_do(
    db: Connection, clock: Clock
) -> None:
    shoe = item(db)
    ann, *_ = many(db, shoe, NAMES)
    call(db, "cancel", ann.order_id)
    settle(db)
    many(db, shoe, ["fay"])
    (bob,) = rows(db, "select * from flashsale.order_status where customer_id = 'bob'")
    down(db)
    call(db, "cancel", bob.order_id)
    settle(db)
    assert statuses(db, shoe)["cid"] == "waiting"
    assert rows(db, "select item_id from flashsale.begin_sweep('runner')") == []
    assert call(db, "promote", shoe).promoted == 0
    down(db, False)
    assert sweep(db).promoted == 1
    assert statuses(db, shoe)["cid"] == "reserved"


def test_a_worker_that_dies_while_it_says_down_stops_nothing_for_long(
    db: Connection, clock: Clock
) -> None:
    shoe = item(db)
    ann, _bob = many(db, shoe, ["ann", "bob"])
    call(db, "cancel", ann.order_id)
    down(db)
    since = clock.at()
    clock.advance(9)
    shown = one(db, "select * from flashsale.provider_status")
    assert (shown.is_down, shown.down_since) == (True, since)
    assert sweep(db).promoted == 0
    clock.advance(2)
    shown = one(db, "select * from flashsale.provider_status")
    assert (shown.is_down, shown.down_since) == (False, None)
    assert sweep(db).promoted == 1
    clock.advance(60)
    down(db)
    assert one(db, "select * from flashsale.provider_status").down_since == clock.at()
    clock.advance(8)
    down(db)
    clock.advance(8)
    assert one(db, "select * from flashsale.provider_status").down_since == clock.at(-16)


def test_a_worker_that_is_behind_does_not_contradict_the_one_that_noticed_the_return(
    db: Connection, clock: Clock
) -> None:
    down(db)
    down(db, False)
    for seconds, is_down in ((0, False), (2, False), (0.5, True), (1, True)):
        clock.advance(seconds)
        down(db)
        assert one(db, "select * from flashsale.provider_status").is_down == is_down
    down(db, False)
    clock.advance(-1)  # the clock has gone back
    down(db)
    assert one(db, "select * from flashsale.provider_status").is_down


def test_an_outage_before_the_hold_began_is_no_excuse(db: Connection, clock: Clock) -> None:
    shoe = item(db)
    down(db)
    clock.advance(1)
    down(db, False)
    clock.advance(1)
    order = reserve(db, shoe, "ann")
    clock.advance(60)
    down(db, False)  # said again so much later, it changes nothing
    sweep(db)
    assert status(db, order.order_id).status == "expired"


@pytest.mark.parametrize("later", ["an outage", "another outage", "a try", "the backlog"])
@pytest.mark.parametrize("before", [False, True])
def test_what_is_known_later_changes_nothing_for_a_hold_that_is_over(
    db: Connection, clock: Clock, later: str, before: bool
) -> None:
    """What a customer has read stays true, also if no sweep has marked it by then."""
    shoe = item(db, hold_seconds=2)
    if before:  # an outage has cost this hold its session
        order = reserve(db, shoe, "ann")
        down(db)
        if later == "the backlog":
            down(db, False)
    elif later == "the backlog":
        down(db)
        down(db, False)
        clock.advance(1)
        order = reserve(db, shoe, "ann")
    else:
        order = reserve(db, shoe, "ann")
    (job,) = take(db)
    clock.advance(5)
    if later == "another outage":
        clock.advance(60)
    expected = "waiting" if before else "expired"
    assert status(db, order.order_id).status == expected
    if later == "a try":
        unavailable(db, job)
    else:
        down(db, later != "the backlog")
    assert status(db, order.order_id).status == expected
    sweep(db)
    assert (status(db, order.order_id).status == "expired") == (expected == "expired")


def test_a_note_that_says_nothing_new_is_no_sweep(db: Connection, clock: Clock) -> None:
    """A worker that is behind says so each second, while many items may have holds to end."""
    order = reserve(db, item(db), "ann")
    clock.set(order.expires_at)
    down(db, False)
    assert value(db, "select status from flashsale_data.orders") == "reserved"


def test_a_hold_that_comes_due_just_after_the_outage_is_not_lost(
    db: Connection, clock: Clock
) -> None:
    order = reserve(db, item(db), "ann")
    clock.advance(50)
    down(db)
    clock.advance(5)
    down(db, False)
    clock.advance(6)
    sweep(db)
    assert status(db, order.order_id).status == "reserved"  # waited, and got another hold


def test_the_backlog_of_an_outage_costs_nobody_their_place(db: Connection, clock: Clock) -> None:
    """Its worker says each second that it is behind."""
    shoe = item(db, stock=2, hold_seconds=20)
    down(db)
    clock.advance(1)
    down(db, False)
    clock.advance(1)
    ann, bob = many(db, shoe, ["ann", "bob"])  # after the return
    for _ in range(3):
        for _second in range(10):
            clock.advance(2)
            down(db, False)
        settle(db)
        assert statuses(db, shoe) == {"ann": "reserved", "bob": "reserved"}
    assert mails(db) == []
    jobs = {job.order_id: job for job in take(db) if job.kind == "open"}
    assert open_session(db, jobs[ann.order_id]) == "opened"
    refused(db, jobs[bob.order_id])
    clock.advance(10)
    down(db, False)
    clock.advance(10)
    settle(db)
    assert statuses(db, shoe) == {"ann": "settling", "bob": "expired"}  # as ever
    clock.advance(20)
    down(db, False)  # a backlog long after an outage is no part of it
    cid = reserve(db, shoe, "cid")
    clock.advance(20)
    down(db, False)
    sweep(db)
    assert status(db, cid.order_id).status == "expired"


def test_holds_that_come_back_together_do_not_keep_each_other_from_their_sessions(
    db: Connection, clock: Clock
) -> None:
    """A worker that makes 25 calls a second, which take 0.8 s each; a hold lasts for 2 s.

    If all holds began again at once, sessions would be opened too late, and would have to be
    voided, which would make those of the next holds too late: for ever.
    """
    shoe = item(db, stock=120, hold_seconds=2)
    many(db, shoe, [f"c{n}" for n in range(120)])
    down(db)
    under_way: deque[list[Any]] = deque([] for _ in range(10))
    could_pay = (
        "select count(distinct order_id) from flashsale_data.payments where opened_at is not null"
    )
    for _ in range(375):  # 30 s
        down(db, False)  # each time, because the worker is behind
        under_way.append(rows(db, "select * from flashsale.take_payment_jobs(2, 30)"))
        clock.advance(0.08)
        for job in under_way.popleft():
            assert (open_session if job.kind == "open" else voided)(db, job)
        sweep(db)
    assert value(db, could_pay) == 120


def test_only_who_has_lost_two_holds_waits_until_the_queue_is_short(
    db: Connection, clock: Clock
) -> None:
    """Then ten sessions per second of a hold are due at once, at most."""
    shoe = item(db, stock=30, hold_seconds=2)
    names = [f"c{n:02}" for n in range(30)]
    many(db, shoe, names)

    def reserved() -> list[str]:
        return [name for name, shown in statuses(db, shoe).items() if shown == "reserved"]

    down(db)
    clock.advance(2)
    settle(db)
    assert reserved() == []
    down(db, False)
    settle(db)
    assert reserved() == names  # at once, after the first
    clock.advance(2)
    down(db, False)
    settle(db)
    assert reserved() == []  # the jobs of the earlier holds are due
    take(db)
    settle(db)
    assert reserved() == names[:20]
    take(db)
    settle(db)
    assert reserved() == names


def test_a_customer_who_had_a_session_expires_though_the_provider_is_down(
    db: Connection, clock: Clock
) -> None:
    shoe = item(db, stock=2)
    ann, bob = many(db, shoe, ["ann", "bob"])
    jobs = {job.order_id: job for job in take(db)}
    open_session(db, jobs[ann.order_id])
    unavailable(db, jobs[bob.order_id])
    event(db, "failed", ann)
    call(db, "request_payment", ann.order_id)
    clock.advance(59)
    down(db)
    clock.advance(2)
    call(db, "expire")
    assert statuses(db, shoe) == {"ann": "expired", "bob": "waiting"}
    assert mails(db) == [("expired", "ann")]


def test_who_went_back_is_shown_as_waiting_and_is_the_next(db: Connection, clock: Clock) -> None:
    shoe = item(db, stock=2)
    ann, bob = many(db, shoe, ["ann", "bob"])
    many(db, shoe, ["cid"])
    for job in take(db):
        unavailable(db, job)
    clock.advance(60)
    for marked in range(2):
        assert status(db, ann.order_id).position == 1
        shown = status(db, bob.order_id)
        # Those who come back are counted once they are marked: here ann, who is before bob.
        assert (shown.status, shown.position) == ("waiting", 1 + marked)
        assert (shown.reserved_at, shown.expires_at, shown.ended_at) == (None, None, None)
        assert reserve(db, shoe, "bob").order_id == bob.order_id
        with pytest.raises(psycopg.Error) as error:
            call(db, "request_payment", bob.order_id)
        assert error.value.sqlstate == "RV203"
        call(db, "expire")
    assert status(db, bob.order_id).payment_status is None
    assert rows(db, "select * from flashsale.open_reservation") == []
    assert "went back to the line" in " ".join(story(db, bob))
    call(db, "cancel", ann.order_id, "ann")
    assert status(db, bob.order_id).position == 1
    settle(db)
    assert statuses(db, shoe) == {"ann": "cancelled", "bob": "reserved", "cid": "reserved"}
    shown = status(db, bob.order_id)
    assert (shown.payment_status, shown.payment_id > bob.payment_id) == ("requested", True)
    assert shown.expires_at == clock.at(60)


def test_a_hold_that_nobody_could_pay_can_be_cancelled_past_its_deadline(
    db: Connection, clock: Clock
) -> None:
    order = reserve(db, item(db), "ann")
    down(db)
    clock.advance(60)
    answer = call(db, "cancel", order.order_id, "ann")
    assert (answer.outcome, answer.status) == ("cancelled", "cancelled")


@pytest.mark.parametrize("end", ["cancel", "close_item"])
def test_the_counters_know_who_has_held_a_unit_before(
    db: Connection, clock: Clock, end: str
) -> None:
    shoe = item(db)
    (ann,) = many(db, shoe, ["ann"])
    down(db)
    clock.advance(60)
    down(db)
    settle(db)
    call(db, end, ann.order_id if end == "cancel" else shoe)
    settle(db)  # violation counts again
    assert item_status(db, shoe).available == 1


def test_a_session_of_an_earlier_hold_is_found_and_voided_and_the_new_one_is_not(
    db: Connection, clock: Clock
) -> None:
    order = reserve(db, item(db), "ann")
    come_due(db, clock, order)
    sweep(db)
    make_due(db)
    jobs = {job.payment_id: job for job in take(db) if job.kind == "open"}
    again = status(db, order.order_id)
    assert set(jobs) == {order.payment_id, again.payment_id}
    assert jobs[order.payment_id].expires_at == order.expires_at  # so that its key fits
    assert jobs[again.payment_id].expires_at == again.expires_at
    assert open_session(db, jobs[again.payment_id]) == "opened"
    assert open_session(db, jobs[order.payment_id]) == "superseded"
    assert kinds(db) == [("void", f"s{order.payment_id}")]
    assert status(db, order.order_id).payment_status == "open"


def test_the_void_of_an_earlier_hold_does_not_close_the_session_of_the_present_one(
    db: Connection, clock: Clock
) -> None:
    order = reserve(db, item(db), "ann")
    come_due(db, clock, order)
    db.execute("update pgmq.q_payments set vt = 'infinity'")  # it is not tried again meanwhile
    sweep(db)  # it goes back to the line, and gets another hold
    again = status(db, order.order_id).payment_id
    assert call(db, "payment_opened", 0, 0, again, "s-new", "http://pay")
    assert [kind for kind, _ in kinds(db)] == []
    assert status(db, order.order_id).payment_status == "open"


def test_a_session_that_opened_just_too_late_goes_with_its_hold(
    db: Connection, clock: Clock
) -> None:
    order = reserve(db, item(db), "ann")
    (job,) = take(db)
    down(db)
    down(db, False)
    clock.set(order.expires_at, 0.1)  # no sweep has been here yet
    assert open_session(db, job) == "superseded"
    sweep(db)
    assert payments(db) == [("failed", None), ("requested", None)]
    assert {kind for kind, _ in kinds(db)} == {"void", "open"}


@pytest.mark.parametrize("doing", ["leases", "opens", "voids"])
def test_a_worker_busy_with_an_earlier_hold_does_not_change_who_is_next(
    db: Connection, database_url: str, clock: Clock, doing: str
) -> None:
    shoe = item(db, stock=2)
    ann, bob = (reserve(db, shoe, name) for name in ("ann", "bob"))
    for job in take(db):
        unavailable(db, job)
    clock.set(bob.expires_at)
    down(db)
    sweep(db)
    assert set(statuses(db, shoe).values()) == {"waiting"}
    make_due(db)
    if doing != "leases":
        (job,) = [job for job in take(db) if job.payment_id == ann.payment_id]
    if doing == "voids":
        assert open_session(db, job) == "superseded"
        (job,) = take(db)
    down(db, False)
    with connect(database_url, autocommit=False) as worker:
        worker.execute("set lock_timeout = '2s'")
        if doing == "leases":
            assert rows(worker, "select * from flashsale.take_payment_jobs(1, 30)")
        elif doing == "opens":
            assert open_session(worker, job) == "superseded"
        else:
            assert voided(worker, job) == "voided"
        sweep(db)
        worker.commit()
    assert set(statuses(db, shoe).values()) == {"reserved"}
    assert status(db, ann.order_id).reserved_at == status(db, bob.order_id).reserved_at


def test_money_for_an_order_that_waits_again_is_put_off_while_it_is_locked(
    db: Connection, database_url: str, clock: Clock
) -> None:
    order = reserve(db, item(db), "ann")
    come_due(db, clock, order)
    down(db)
    sweep(db)
    make_due(db)
    (job,) = take(db)
    assert open_session(db, job) == "superseded"
    (void,) = take(db)
    db.execute("set lock_timeout = '2s'")
    with connect(database_url, autocommit=False) as tool:
        tool.execute("select from flashsale_data.orders for update")
        assert captured(db, void) == "busy"


def test_money_for_an_earlier_hold_buys_the_present_one(db: Connection, clock: Clock) -> None:
    order = reserve(db, item(db), "ann")
    come_due(db, clock, order)
    sweep(db)
    assert event(db, "succeeded", order, at=clock.at(-5)) == "paid"
    shown = status(db, order.order_id)
    assert (shown.status, shown.paid_at) == ("paid", shown.reserved_at)


def test_a_void_of_a_settling_order_comes_back_soon(db: Connection, clock: Clock) -> None:
    order = reserve(db, item(db, settle_seconds=60), "ann")
    open_sessions(db)
    clock.set(order.expires_at)
    sweep(db)
    for _ in range(12):
        make_due(db)
        (void,) = take(db)
        assert unavailable(db, void) == "retry"
        pause = "select extract(epoch from vt - clock_timestamp())::float8 from pgmq.q_payments"
        assert value(db, pause) <= 2
    make_due(db)
    (void,) = take(db)
    assert captured(db, void, clock.at(-1)) == "paid"


# Dead letters


def dead_letter(db: Connection) -> int:
    return int(value(db, "select dead_letter_id from flashsale.dead_letter"))


def give_up(db: Connection) -> None:
    db.execute("update pgmq.q_payments set read_ct = 299, vt = clock_timestamp()")
    (job,) = take(db)
    assert refused(db, job) == "dead"


def test_a_payment_that_was_given_up_is_revived_by_another_attempt(db: Connection) -> None:
    order = reserve(db, item(db), "ann")
    db.execute("update pgmq.q_payments set read_ct = 9")
    (job,) = take(db)
    assert refused(db, job) == "dead"
    call(db, "retry_dead_letter", dead_letter(db))
    (again,) = take(db)
    assert (again.kind, again.order_id, again.tries) == ("open", order.order_id, 1)
    assert again.payment_id > order.payment_id
    assert open_session(db, again) == "opened"
    assert rows(db, "select * from flashsale.dead_letter") == []
    noted = one(db, "select * from flashsale.history where action <> 'create_item'")
    assert (noted.action, noted.order_id) == ("retry_dead_letter", order.order_id)


@pytest.mark.parametrize(
    ("hindrance", "why"),
    [
        ("expired", "the order is expired"),
        ("cancelled", "the order is cancelled"),
        ("another attempt", "another attempt is under way"),
    ],
)
def test_a_letter_that_can_not_be_revived_says_why_and_stays(
    db: Connection, clock: Clock, hindrance: str, why: str
) -> None:
    order = reserve(db, item(db), "ann")
    db.execute("update pgmq.q_payments set read_ct = 9")
    (job,) = take(db)
    refused(db, job)
    match hindrance:
        case "expired":
            clock.advance(60)
        case "cancelled":
            call(db, "cancel", order.order_id)
        case _:
            call(db, "request_payment", order.order_id)
    with pytest.raises(psycopg.Error, match=why) as error:
        call(db, "retry_dead_letter", dead_letter(db))
    assert error.value.sqlstate == "RV208"
    assert dead_letter(db)


@pytest.mark.parametrize("kind", ["void", "refund"])
def test_a_void_or_refund_is_tried_again_unless_it_has_been_done(
    db: Connection, clock: Clock, kind: str
) -> None:
    order = reserve(db, item(db), "ann")
    open_sessions(db)
    if kind == "void":
        call(db, "cancel", order.order_id)
    else:
        clock.advance(60)
        event(db, "succeeded", order)
    give_up(db)
    call(db, "retry_dead_letter", dead_letter(db))
    give_up(db)
    event(db, "voided" if kind == "void" else "refunded", order)
    with pytest.raises(psycopg.Error) as error:
        call(db, "retry_dead_letter", dead_letter(db))
    assert error.value.sqlstate == "RV208"
