"""The simulated provider over HTTP: sessions, ledger, events, and faults."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from flashsale import signature
from flashsale.settings import SettingsError
from flashsale.simulator.app import create_app
from flashsale.simulator.faults import FaultDice
from flashsale.simulator.ledger import Ledger, LedgerError
from flashsale.simulator.messages import Faults
from flashsale.simulator.sessions import SimulatedProvider
from flashsale.testing.processes import environment
from simulator_support import SECRET, Stage, staged, until


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(tmp_path) as stage:
        yield stage


@pytest.fixture
async def provider(stage: Stage) -> Stage:
    return await stage.start()


def refusal(response: httpx.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == response.status_code
    return response.status_code, problem["code"]


# Sessions


async def test_session_is_paid_at_its_checkout_url(provider: Stage) -> None:
    session = await provider.open("7", order_id="8", expires_at="2030-01-01T00:00:00Z")
    assert session["status"] == "open" and session["payment_id"] == "7"
    # when the customer goes where checkout_url points
    shown = (await provider.client.get(session["checkout_url"])).json()
    assert shown["how_to_pay"].startswith(f"curl -X POST {session['checkout_url']}/complete")
    paid = await provider.client.post(
        f"{session['checkout_url']}/complete",
        content=b'{"outcome": "succeed"}',
        headers={"content-type": "application/x-www-form-urlencoded"},  # as curl -d has it
    )
    # then the money is there
    assert paid.json()["status"] == "captured"
    assert (await provider.client.get(session["checkout_url"])).json() == paid.json()
    totals = await provider.totals()
    assert (totals["captured"], totals["captured_amounts"]) == (1, {"EUR": 1000})


async def test_same_key_gets_the_same_session(provider: Stage) -> None:
    terms = {"order_id": "8", "expires_at": "2030-01-01T01:00:00+01:00"}
    body = {"payment_id": "7", "amount": 1, "currency": "EUR"} | terms
    first = await provider.post("/sessions", body, "k")
    again = await provider.post("/sessions", body, "k")
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert len(provider.lines()) == 1


async def test_twenty_requests_with_one_key_open_one_session(provider: Stage) -> None:
    sessions = await asyncio.gather(*(provider.open("7", "k") for _ in range(20)))
    assert len({s["session_id"] for s in sessions}) == 1


async def test_key_used_for_something_else_is_refused(provider: Stage) -> None:
    session = await provider.open("7", "k")
    other = {"payment_id": "7", "amount": 999, "currency": "EUR"}
    assert refusal(await provider.post("/sessions", other, "k")) == (409, "idempotency_key_reused")
    assert refusal(await provider.void(session, "k")) == (409, "idempotency_key_reused")
    assert (await provider.void(session, "v")).status_code == 200
    another = await provider.open("8")
    assert refusal(await provider.void(another, "v")) == (409, "idempotency_key_reused")


async def test_completing_twice_captures_once(provider: Stage) -> None:
    session = await provider.open()
    answers = await asyncio.gather(*(provider.complete(session) for _ in range(20)))
    assert {a.status_code for a in answers} == {200}
    assert len({a.text for a in answers}) == 1
    assert provider.moves() == [("captured", "1")]


async def test_failed_session_stays_failed(provider: Stage) -> None:
    session = await provider.open()
    assert (await provider.complete(session, "fail")).json()["status"] == "failed"
    assert (await provider.complete(session, "fail")).json()["status"] == "failed"
    assert refusal(await provider.complete(session)) == (409, "already_failed")
    # and no money will come: that is all a void wants
    assert (await provider.void(session)).json()["status"] == "failed"
    assert provider.moves() == [("failed", "1")]


async def test_voided_session_takes_no_money(provider: Stage) -> None:
    session = await provider.open()
    assert (await provider.void(session, "v")).json()["status"] == "voided"
    assert (await provider.void(session, "v")).json()["status"] == "voided"
    for outcome in ("succeed", "fail"):
        assert refusal(await provider.complete(session, outcome)) == (409, "already_voided")
    assert refusal(await provider.refund(session)) == (409, "not_captured")
    assert provider.moves() == [("voided", "1")]


async def test_void_of_a_captured_session_shows_the_money(provider: Stage) -> None:
    session = await provider.open()
    await provider.complete(session)
    answer = await provider.void(session)
    assert refusal(answer) == (409, "already_captured")
    assert answer.json()["session"]["amount"] == 1000
    await provider.refund(session)
    assert refusal(await provider.void(session)) == (409, "already_captured")


async def test_void_and_payment_at_the_same_time_agree(provider: Stage) -> None:
    for n in range(10):
        session = await provider.open(str(n))
        paid, voided = await asyncio.gather(provider.complete(session), provider.void(session))
        assert sorted([paid.status_code, voided.status_code]) == [200, 409]
    assert len(provider.moves()) == 10


async def test_refund_happens_once(provider: Stage) -> None:
    session = await provider.open()
    await provider.complete(session)
    wanted = {"amount": 1000, "currency": "EUR"}
    answers = await asyncio.gather(*(provider.refund(session, wanted, "r") for _ in range(10)))
    assert {a.json()["status"] for a in answers} == {"refunded"}
    for key in ("another", None):
        assert refusal(await provider.refund(session, key=key)) == (409, "already_refunded")
    assert (await provider.complete(session)).json()["status"] == "refunded"
    assert provider.moves() == [("captured", "1"), ("refunded", "1")]
    totals = await provider.totals()
    assert totals["captured_amounts"] == totals["refunded_amounts"] == {"EUR": 1000}


async def test_refund_of_another_amount_is_refused(provider: Stage) -> None:
    session = await provider.open()
    await provider.complete(session)
    for wrong in ({"amount": 999}, {"amount": 1000, "currency": "USD"}):
        assert refusal(await provider.refund(session, wrong)) == (409, "wrong_amount")
    assert provider.moves() == [("captured", "1")]


async def test_a_currency_that_does_not_exist_is_refused(provider: Stage) -> None:
    body = {"payment_id": "1", "amount": 1, "currency": "ABC"}
    assert refusal(await provider.post("/sessions", body)) == (422, "unknown_currency")
    for currency in ("EUR", "JPY", "KWD", "CLF"):
        assert (await provider.post("/sessions", body | {"currency": currency})).is_success
    assert len(provider.lines()) == 4


async def test_what_is_paid_for_is_only_shown(provider: Stage) -> None:
    """A worker of an older release sends no description; its retry must find the session."""
    session = await provider.open("7", "k", description="Shoe")
    assert session["description"] == "Shoe"
    for again in ({}, {"description": "Boot"}):
        assert await provider.open("7", "k", **again) == session


async def test_sessions_come_in_pages(provider: Stage) -> None:
    for n in range(5):
        await provider.open(str(n))
    seen, after = [], 0
    while after is not None:
        page = (await provider.client.get("/sessions", params={"after": after, "limit": 2})).json()
        seen += [s["payment_id"] for s in page["sessions"]]
        after = page["next"]
    assert seen == ["0", "1", "2", "3", "4"]
    assert page["totals"]["open"] == 5


GOOD = b'{"payment_id": "1", "amount": 1, "currency": "EUR"'


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", (422, "bad_value")),
        (b"{", (400, "malformed_body")),
        (b"[]", (422, "bad_value")),
        (b"\xff", (400, "malformed_body")),
        (b"[" * 16_000, (422, "bad_value")),
        (GOOD + b', "x": ' + b"[" * 16_000 + b"}", (422, "bad_value")),
        (GOOD + b', "x": 1}', (422, "bad_value")),
        (GOOD + b', "order_id": "a\\nb"}', (422, "bad_value")),
        (GOOD + b', "order_id": "a\\n"}', (422, "bad_value")),
        (GOOD + b', "order_id": "\\ud800"}', (400, "malformed_body")),
        (GOOD + b', "expires_at": "2030-01-01T00:00:00"}', (422, "bad_value")),
        (b'{"payment_id": 1, "amount": 1, "currency": "EUR"}', (422, "bad_value")),
        (b'{"payment_id": "1", "amount": 0, "currency": "EUR"}', (422, "bad_value")),
        (b'{"payment_id": "1", "amount": 1.5, "currency": "EUR"}', (422, "bad_value")),
        (b'{"payment_id": "1", "amount": 1, "currency": "eur"}', (422, "bad_value")),
        (b'{"payment_id": "1", "amount": ' + b"9" * 9_000 + b"}", (422, "bad_value")),
        (b'{"payment_id": "1", "amount": 1e999, "currency": "EUR"}', (422, "bad_value")),
        (b" " * 20_000, (413, "request_entity_too_large")),
    ],
)
async def test_bad_body_is_refused(provider: Stage, body: bytes, expected: tuple[int, str]) -> None:
    assert refusal(await provider.post("/sessions", body)) == expected
    assert provider.lines() == []


async def test_other_bad_requests_are_refused(provider: Stage) -> None:
    client = provider.client
    assert refusal(await client.get("/sessions/cs_none")) == (404, "unknown_session")
    assert refusal(await provider.post("/sessions/cs_none/void")) == (404, "unknown_session")
    assert refusal(await client.get("/elsewhere")) == (404, "not_found")
    assert refusal(await client.delete("/sessions")) == (405, "method_not_allowed")
    for query in ("limit=-1", "limit=1001", "after=x", "after=" + "9" * 5000):
        assert refusal(await client.get(f"/sessions?{query}")) == (422, "bad_value")
    for key in (b"", b"k" * 256, b"\xe9"):
        answer = await client.post(
            "/sessions", content=GOOD + b"}", headers={b"Idempotency-Key": key}
        )
        assert refusal(answer) == (422, "bad_value")
    session = await provider.open()
    complete = f"/sessions/{session['session_id']}/complete"
    for body in ({}, {"outcome": "perhaps"}, {"outcome": "succeed", "x": 1}):
        assert refusal(await provider.post(complete, body)) == (422, "bad_value")
    assert refusal(await provider.refund(session, {"amount": "1"})) == (422, "bad_value")


# The ledger


async def test_everything_survives_a_restart(stage: Stage) -> None:
    # given a session in every state, and nothing left to deliver
    await stage.start()
    sessions = [await stage.open(str(n), f"open-{n}") for n in range(5)]
    await stage.complete(sessions[1])
    await stage.complete(sessions[2], "fail")
    await stage.void(sessions[3], "void-3")
    await stage.complete(sessions[4])
    await stage.refund(sessions[4], key="refund-4")
    await until(lambda: sum(line["kind"] == "delivered" for line in stage.lines()) == 5)
    before = (await stage.client.get("/sessions")).json()
    # when it restarts
    await stage.stop()
    await stage.start()
    # then everything is as it was, keys too, and nothing is told again
    assert (await stage.client.get("/sessions")).json() == before
    assert before["totals"]["undelivered_events"] == 0
    assert (await stage.open("0", "open-0"))["session_id"] == sessions[0]["session_id"]
    assert refusal(await stage.void(sessions[0], "void-3")) == (409, "idempotency_key_reused")
    assert (await stage.refund(sessions[4], key="refund-4")).json()["status"] == "refunded"
    assert refusal(await stage.refund(sessions[4])) == (409, "already_refunded")
    assert len(stage.moves()) == 5
    assert len(stage.hook.deliveries) == 5


async def test_a_ledger_of_an_older_release_is_replayed(stage: Stage) -> None:
    at = '"at":"2026-01-01T00:00:00Z","session_id":"cs_1","payment_id":"1","amount":1,'
    at += '"currency":"EUR","key":null'
    stage.ledger.write_text(
        f'{{"kind":"opened",{at},"order_id":null,"expires_at":null}}\n'
        f'{{"kind":"moved",{at},"to":"failed","event_id":"evt_1"}}\n'
    )
    await stage.start()
    shown = (await stage.client.get("/sessions/cs_1")).json()
    assert (shown["status"], shown["description"]) == ("failed", None)
    await until(lambda: stage.hook.types == ["payment.failed"])


async def test_torn_last_line_is_cut_off(stage: Stage) -> None:
    # given a crash in the middle of writing a capture
    await stage.start()
    session = await stage.open()
    await stage.stop()
    whole = stage.ledger.read_bytes()
    stage.ledger.write_bytes(whole + b'{"kind":"moved","to":"captured","se')
    # when it starts again
    await stage.start()
    # then the capture never happened, and can happen
    assert stage.ledger.read_bytes() == whole
    assert (await stage.complete(session)).status_code == 200
    assert [line["kind"] for line in stage.lines()][:2] == ["opened", "moved"]


async def test_a_damaged_ledger_is_an_error(stage: Stage) -> None:
    stage.ledger.write_bytes(b'{"kind":"moved"\n{"kind":"delivered","event_id":"e"}\n')
    with pytest.raises(LedgerError, match=r"ledger\.jsonl:1"):
        SimulatedProvider(stage.settings(), FaultDice(Faults(), seed=0))


async def test_ledger_has_one_provider_at_a_time(provider: Stage) -> None:
    with pytest.raises(LedgerError, match="another provider is using this ledger"):
        SimulatedProvider(provider.settings(), FaultDice(Faults(), seed=0))


async def test_no_one_is_told_before_the_ledger_is_on_disk(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stage.start()
    session = await stage.open()
    may_sync = threading.Event()
    on_disk: list[int] = []

    def sync(fd: int) -> None:
        may_sync.wait(20)
        on_disk.append(os.fstat(fd).st_size)

    monkeypatch.setattr(os, "fsync", sync)
    told = asyncio.create_task(stage.complete(session))
    await until(lambda: "captured" in stage.ledger.read_text())
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert not told.done() and not stage.hook.deliveries
    may_sync.set()
    assert (await told).json()["status"] == "captured"
    assert on_disk


async def test_no_one_is_told_about_an_event_that_could_not_be_written(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a full disk
    await stage.start()
    session = await stage.open()
    with monkeypatch.context() as full:

        def fail(ledger: Ledger, lines: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        full.setattr(Ledger, "_append", fail)
        # when money comes, then nobody is told
        assert refusal(await stage.complete(session)) == (503, "ledger_unavailable")
    # and nothing works until it is known what is on disk
    for path in ("/sessions", "/health/ready", f"/sessions/{session['session_id']}"):
        assert refusal(await stage.client.get(path)) == (503, "ledger_unavailable")
    await stage.stop()
    assert stage.hook.deliveries == []
    # then it did not happen
    await stage.start()
    assert (await stage.complete(session)).json()["status"] == "captured"
    assert stage.moves() == [("captured", "1")]


async def test_kill_loses_nothing_that_was_answered(stage: Stage) -> None:
    # given a provider of its own whose webhook is down
    await stage.hook.stop()
    settings = stage.settings()
    names = ("provider_port", "provider_url", "provider_ledger", "webhook_url", "webhook_secret")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "flashsale", "provider"),
        env=environment(**{name: getattr(settings, name) for name in names}),
        start_new_session=True,
        stdout=asyncio.subprocess.DEVNULL,
    )
    answered: set[str] = set()
    try:
        await stage.reached()

        async def pay(n: int) -> None:
            try:
                if (await stage.complete(await stage.open(str(n)))).is_success:
                    answered.add(str(n))
            except httpx.HTTPError:
                pass

        # when it is killed in the middle of paying
        payments = [asyncio.create_task(pay(n)) for n in range(300)]
        await until(lambda: len(answered) >= 20)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    await asyncio.gather(*payments)
    # then everything that was answered is there, and its event comes after the next start
    await stage.hook.start()
    await stage.start()
    captured = [payment for what, payment in stage.moves() if what == "captured"]
    assert answered <= set(captured)
    assert max(Counter(captured).values()) == 1
    await until(lambda: {d.event["payment_id"] for d in stage.hook.deliveries} == set(captured))


async def test_undelivered_events_are_sent_after_a_restart(stage: Stage) -> None:
    # given an event that nobody took
    await stage.hook.stop()
    await stage.start()
    await stage.complete(await stage.open())
    assert (await stage.totals())["undelivered_events"] == 1
    # when both are back
    await stage.stop()
    await stage.hook.start()
    await stage.start()
    # then it arrives, as the same event
    await until(lambda: stage.hook.deliveries)
    assert stage.hook.event_ids == [stage.lines()[1]["event_id"]]


# Events


async def test_a_declined_session_may_stay_payable(stage: Stage) -> None:
    # given sessions that were declined, one of which can still be paid
    await stage.start({"decline_keeps_open": 1})
    first, second, third = [await stage.open(str(n)) for n in (1, 2, 3)]
    for _ in range(2):
        declined = (await stage.complete(first, "fail")).json()
        assert declined["status"] == "open" and declined["failed_at"]
    await stage.complete(second, "fail")
    await stage.faults()
    await stage.complete(third, "fail")
    await until(lambda: len(stage.hook.deliveries) == 4)
    payable = {(d.event["payment_id"], d.event.get("payable")) for d in stage.hook.deliveries}
    assert payable == {("1", True), ("2", True), ("3", None)}
    # then they are what they were after a restart
    before = (await stage.client.get("/sessions")).json()
    await until(lambda: sum(line["kind"] == "delivered" for line in stage.lines()) == 4)
    await stage.stop()
    await stage.start()
    after = (await stage.client.get("/sessions")).json()
    assert after["sessions"] == before["sessions"]
    assert (after["totals"]["open"], after["totals"]["failed"]) == (2, 1)
    # and can be paid, or voided
    assert (await stage.complete(first)).json()["status"] == "captured"
    assert (await stage.void(second)).json()["status"] == "voided"
    assert refusal(await stage.complete(third)) == (409, "already_failed")
    assert stage.hook.types.count("payment.failed") == 4


async def test_somebody_at_the_provider_refunds(stage: Stage) -> None:
    # given money that came
    await stage.start()
    session = await stage.open("7")
    await stage.complete(session)
    # when it is refunded without a key of the service
    assert (await stage.refund(session)).json()["status"] == "refunded"
    # then the webhook hears of it, and the ledger keeps who did it
    await until(lambda: len(stage.hook.deliveries) == 2)
    assert stage.hook.types[-1] == "payment.refunded"
    (line,) = [line for line in stage.lines() if line.get("to") == "refunded"]
    assert line["key"] is None
    # and it is so after a restart
    await stage.stop()
    await stage.start()
    shown = (await stage.client.get(session["checkout_url"])).json()
    assert shown["status"] == "refunded" and shown["captured_at"] < shown["refunded_at"]


async def test_a_void_that_came_too_late_tells_when_the_money_came(provider: Stage) -> None:
    session = await provider.open()
    captured = (await provider.complete(session)).json()
    answer = (await provider.void(session)).json()
    assert answer["session"]["captured_at"] == captured["captured_at"]
    await provider.refund(session)
    answer = (await provider.void(session)).json()
    assert answer["session"]["captured_at"] == captured["captured_at"]


async def test_event_says_what_happened_and_is_signed(provider: Stage) -> None:
    session = await provider.open("7", amount=1234, currency="USD")
    captured = (await provider.complete(session)).json()
    await until(lambda: provider.hook.deliveries)
    delivery = provider.hook.deliveries[0]
    signature.verify(SECRET, delivery.header, delivery.body, time.time(), 5)
    assert delivery.event.pop("event_id").startswith("evt_")
    assert {k: v for k, v in delivery.event.items() if k != "event_id"} == {
        "type": "payment.succeeded",
        "session_id": session["session_id"],
        "payment_id": "7",
        "amount": 1234,
        "currency": "USD",
        "occurred_at": captured["captured_at"],
    }


async def test_every_end_of_a_session_has_its_event(provider: Stage) -> None:
    paid, failed, voided = [await provider.open(n) for n in "123"]
    await provider.complete(paid)
    await provider.complete(failed, "fail")
    await provider.void(voided)
    await provider.refund(paid)
    await until(lambda: len(provider.hook.deliveries) == 4)
    assert Counter((d.event["type"], d.event["payment_id"]) for d in provider.hook.deliveries) == {
        ("payment.succeeded", "1"): 1,
        ("payment.failed", "2"): 1,
        ("payment.voided", "3"): 1,
        ("payment.refunded", "1"): 1,
    }


async def test_event_is_sent_until_it_is_taken(provider: Stage) -> None:
    # given a webhook that fails in every way: no answer, error, busy, refusal, redirect
    provider.hook.answers = [0, 500, 429, 400, 401, 307]
    await provider.complete(await provider.open())
    # then it comes again, the same, until a 2xx, and then no more
    await until(lambda: len(provider.hook.deliveries) == 7)
    assert len(set(provider.hook.event_ids)) == 1
    await until(lambda: provider.lines()[-1]["kind"] == "delivered")
    assert (await provider.totals())["undelivered_events"] == 0
    assert len(provider.hook.deliveries) == 7


async def test_each_attempt_has_a_fresh_signature(provider: Stage) -> None:
    # given a webhook that says no for longer than a second
    started = time.time()
    provider.hook.answer = lambda event: 200 if time.time() > started + 1.5 else 503
    await provider.complete(await provider.open())
    await until(lambda: (lines := provider.lines()) and lines[-1]["kind"] == "delivered")
    # then the last attempt is signed as of then
    first, last = provider.hook.deliveries[0], provider.hook.deliveries[-1]
    assert first.body == last.body
    assert first.header != last.header
    signature.verify(SECRET, last.header, last.body, time.time(), 2)


async def test_one_failing_event_holds_up_no_other(provider: Stage) -> None:
    provider.hook.answer = lambda event: 500 if event["payment_id"] == "0" else 200
    for n in range(50):
        await provider.complete(await provider.open(str(n)))
    await until(lambda: {d.event["payment_id"] for d in provider.hook.deliveries} >= set(PAYMENTS))
    assert (await provider.totals())["undelivered_events"] >= 1


async def test_an_absent_webhook_is_probed_and_then_gets_all_events(stage: Stage) -> None:
    # given a storm of events while nobody listens
    await stage.hook.stop()
    await stage.start()
    for n in range(50):
        await stage.complete(await stage.open(str(n)))
    assert (await stage.totals())["undelivered_events"] == 50
    # when somebody does
    await stage.hook.start()
    # then all come
    await until(lambda: {d.event["payment_id"] for d in stage.hook.deliveries} == set(PAYMENTS))


PAYMENTS = [str(n) for n in range(50)]


# Faults


async def test_faults_can_be_read_and_changed(stage: Stage) -> None:
    await stage.start({"latency_ms": 1, "fail": 0.5})
    faults = (await stage.client.get("/faults")).json()
    assert (faults["latency_ms"], faults["fail"], faults["hang"]) == (1, 0.5, 0)
    # what PUT does not name is off
    await stage.faults(duplicate_events=1)
    faults = (await stage.client.get("/faults")).json()
    assert (faults["latency_ms"], faults["fail"], faults["duplicate_events"]) == (0, 0, 1)


@pytest.mark.parametrize(
    "faults", [{"hang": 1.1}, {"hang": -0.1}, {"latency_ms": -1}, {"typo": 1}, {"fail": "1"}]
)
async def test_impossible_faults_are_refused(provider: Stage, faults: dict[str, Any]) -> None:
    assert refusal(await provider.client.put("/faults", json=faults)) == (422, "bad_value")
    with pytest.raises(SettingsError, match="FLASHSALE_FAULTS"):
        create_app(provider.settings(faults))


async def test_latency_delays_calls(stage: Stage) -> None:
    await stage.start({"latency_ms": 300})
    started = time.monotonic()
    await stage.open()
    assert time.monotonic() - started >= 0.3


async def test_failed_call_has_no_effect(stage: Stage) -> None:
    await stage.start({"fail_next": 2})
    body = {"payment_id": "1", "amount": 1, "currency": "EUR"}
    for _ in range(2):
        assert refusal(await stage.post("/sessions", body)) == (500, "simulated_failure")
    assert stage.lines() == []
    assert (await stage.post("/sessions", body)).status_code == 201


async def test_faults_occur_as_often_as_set_and_alike_with_the_same_seed(
    provider: Stage,
) -> None:
    async def statuses() -> list[int]:
        await provider.faults(fail=0.5, seed=7)
        return [(await provider.post("/sessions/cs_none/void")).status_code for _ in range(100)]

    first = await statuses()
    assert 30 <= first.count(500) <= 70
    assert await statuses() == first


async def test_hanging_call_has_no_answer_and_no_effect(provider: Stage) -> None:
    await provider.faults(hang=1)
    body = {"payment_id": "1", "amount": 1, "currency": "EUR"}
    with pytest.raises(httpx.ReadTimeout):
        await provider.client.post("/sessions", json=body, timeout=0.3)
    await provider.faults(hang=1, hang_ms=50)
    assert refusal(await provider.post("/sessions", body)) == (503, "simulated_hang")
    # others are not held up, and neither is the end
    await provider.faults()
    assert provider.lines() == []
    await provider.open()


async def test_lost_reply_comes_after_the_effect(provider: Stage) -> None:
    await provider.faults(lose_replies=1)
    with pytest.raises(httpx.RemoteProtocolError):
        await provider.open("7", "k")
    assert [line["payment_id"] for line in provider.lines()] == ["7"]
    # asking again with the key finds it
    await provider.faults()
    session = await provider.open("7", "k")
    assert session["session_id"] == provider.lines()[0]["session_id"]
    assert len(provider.lines()) == 1


async def test_faults_do_not_affect_reads_completions_and_fault_settings(stage: Stage) -> None:
    await stage.start()
    session = await stage.open()
    await stage.faults(fail=1)
    assert (await stage.complete(session)).status_code == 200
    assert (await stage.client.get(session["checkout_url"])).status_code == 200
    assert (await stage.totals())["captured"] == 1


async def test_duplicated_event_comes_twice_and_counts_once(stage: Stage) -> None:
    await stage.start({"duplicate_events": 1})
    await stage.complete(await stage.open())
    await until(lambda: len(stage.hook.deliveries) == 2)
    assert len(set(stage.hook.event_ids)) == 1
    await until(lambda: any(line["kind"] == "delivered" for line in stage.lines()))
    await stage.stop()
    assert [line["kind"] for line in stage.lines()] == ["opened", "moved", "delivered"]


async def test_reordered_event_comes_after_the_next(stage: Stage) -> None:
    await stage.start({"reorder_events": 1, "delay_ms": 60_000})
    first, second = await stage.open("1"), await stage.open("2")
    await stage.complete(first)
    await stage.complete(second)
    await until(lambda: len(stage.hook.deliveries) == 2)
    assert [d.event["payment_id"] for d in stage.hook.deliveries] == ["2", "1"]


async def test_reordered_event_does_not_wait_for_ever(stage: Stage) -> None:
    await stage.start({"reorder_events": 1, "delay_ms": 50})
    await stage.complete(await stage.open())
    await until(lambda: stage.hook.deliveries)


async def test_delayed_event_comes_late(stage: Stage) -> None:
    await stage.start({"delay_events": 1, "delay_ms": 300})
    started = time.monotonic()
    await stage.complete(await stage.open())
    await until(lambda: stage.hook.deliveries)
    assert time.monotonic() - started >= 0.3
