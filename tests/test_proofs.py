"""The parts of the proofs: what they would miss, nobody would notice."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prove.customers.client import Gateway, NotSent, Unanswered
from prove.faults import deadline, mass, neighbours, outage, restore, upgrade
from prove.judge.history import History
from prove.judge.records import FinalTables, OrderRow, PaymentRow
from prove.mutants import MUTANTS, misfit
from prove.stage.fleet import THIS
from prove.stage.releases import ROOT, of_commit, with_a_comment

from flashsale.dev.postgres import EmbeddedPostgres
from flashsale.settings import Settings
from flashsale.worker.mail import LogSender, YourTurn, compose
from support import Connection, connect, item, reserve

# The gateway


@asynccontextmanager
async def replica(status: int) -> AsyncIterator[str]:
    """A server that answers everything with a status; 0: it hangs up."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if status:
            body = json.dumps({"code": "overloaded"}).encode()
            head = f"HTTP/1.1 {status} .\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_the_gateway_asks_another_replica_after_a_503_or_a_broken_connection() -> None:
    async with replica(503) as full, replica(0) as dying, replica(200) as well:
        gateway = Gateway(lambda: [full, dying, well])
        answers = [(await gateway.request("POST", "/"))[0] for _ in range(3)]
        gateway.close()
    assert answers == [200, 200, 200]
    assert set(gateway.repeated) == {"503 overloaded", "broken off"}
    assert not gateway.unresolved


async def test_the_gateway_tells_what_no_replica_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gateway, "PATIENCE_SECONDS", 0.0)
    async with replica(503) as full:
        gateway = Gateway(lambda: [full])
        assert (await gateway.request("GET", "/orders"))[0] == 503
        nobody = Gateway(list)
        with pytest.raises(NotSent):
            await nobody.request("POST", "/orders")
    assert gateway.unresolved == ["GET /orders: 503 overloaded"]
    assert nobody.unresolved == ["POST /orders: refused"]


async def test_the_gateway_does_not_repeat_a_change_that_may_have_happened() -> None:
    async with replica(0) as dying, replica(200) as well:
        gateway = Gateway(lambda: [well, dying])  # the second is asked first
        with pytest.raises(Unanswered):
            await gateway.request("PATCH", "/items/1", body={"add_stock": 1})
    assert not gateway.repeated


# Mutants


def test_each_mutant_can_be_made_and_names_tests_that_exist() -> None:
    assert [why for mutant in MUTANTS if (why := misfit(mutant))] == []


# Versions


def test_a_comment_in_sql_makes_a_version_of_its_own(tmp_path: Path) -> None:
    version = with_a_comment(THIS, tmp_path)
    question = "from flashsale.database.version import expected_version as v; print(v())"
    told = {
        subprocess.run(
            [sys.executable, "-c", question], env=it.environment(), capture_output=True, check=True
        ).stdout
        for it in (THIS, version)
    }
    assert len(told) == 2
    assert version.migrations() == THIS.migrations()


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is not a git repository")
def test_a_version_is_a_commit_and_without_it_there_is_none(tmp_path: Path) -> None:
    before = of_commit("HEAD", tmp_path)
    assert before
    where = "import flashsale; print(flashsale.__file__)"
    command = [sys.executable, "-c", where]
    done = subprocess.run(command, env=before.environment(), capture_output=True, check=True)
    assert done.stdout.decode().startswith(str(tmp_path))
    assert of_commit("no-such-commit", tmp_path) is None


def test_a_replica_that_does_not_serve_a_compatible_database_is_found() -> None:
    lacked = {("old", "migrations"): 3, ("new", "no answer"): 9, ("new", "sweep"): 1}
    lacked |= {("old", "database, migrations, sweep"): 2}
    fleet: Any = SimpleNamespace(unready=lacked)
    assert upgrade.incompatible(fleet) == ["old was not ready 3 times: migrations"]


# Restore

LEDGER = [
    {"kind": "opened", "session_id": "before", "at": "1970-01-01T00:01:00Z"},
    {"kind": "moved", "session_id": "before", "to": "captured", "at": "1970-01-01T00:01:01Z"},
    {"kind": "delivered", "event_id": "before", "at": "1970-01-01T00:01:01Z"},
    {"kind": "opened", "session_id": "after", "at": "1970-01-01T00:02:01Z"},
    {"kind": "opened", "session_id": "paid", "at": "1970-01-01T00:02:02Z"},
    {"kind": "moved", "session_id": "paid", "to": "captured", "at": "1970-01-01T00:02:03Z"},
    {"kind": "delivered", "event_id": "paid", "at": "1970-01-01T00:02:03Z"},
]


@pytest.fixture
def lost() -> restore.Lost:
    history = History()
    history.epoch = 0.0
    return restore.Lost(history, [*LEDGER], backup_began=120.0)


def test_events_since_the_backup_are_sent_again(lost: restore.Lost) -> None:
    lines = map(json.loads, restore.events_to_send_again(lost).splitlines())
    assert [line["event_id"] for line in lines if line["kind"] == "delivered"] == ["before"]
    assert restore.unknown_sessions(lost) == ["after"]


def test_the_guide_has_the_statements_of_the_proof() -> None:
    guide = (ROOT / "docs/how-to/restore-to-an-earlier-moment.md").read_text()
    assert restore.SKIP.strip() in guide
    assert restore.PAID_BACK.strip() in guide


def test_an_order_of_before_the_backup_that_is_gone_is_told_apart(lost: restore.Lost) -> None:
    for ticket, answered in ((1, 100.0), (2, 100.0), (3, 130.0)):
        op = lost.history.ask("reserve", 1, customer=f"c{ticket}")
        lost.history.answer(op, 201, {"item_id": 1, "ticket": ticket})
        op.answered = answered
    orders = [
        SimpleNamespace(place=(1, 1), customer="c1"),
        SimpleNamespace(place=(1, 3), customer="somebody else"),
    ]
    database: Any = SimpleNamespace(orders=orders)
    assert restore.orders_gone(lost, database) == (2, [(1, 2)])


def test_an_order_that_was_bought_with_the_money_of_another_is_found(lost: restore.Lost) -> None:
    for customer, ticket, session in (("ann", 1, "paid"), ("bob", 2, "after")):
        op = lost.history.ask("reserve", 1, customer=customer)
        lost.history.answer(op, 201, {"item_id": 1, "ticket": ticket, "order_id": f"{ticket}"})
        lost.ledger.append(
            {"kind": "opened", "session_id": session, "order_id": f"{ticket}", "at": "1970-01-01"}
        )
    lost.ledger[:] = lost.ledger[-2:]
    database: Any = SimpleNamespace(
        orders=[
            SimpleNamespace(place=(1, 1), customer="cid"),
            SimpleNamespace(place=(1, 2), customer="bob"),
        ],
        payments=[
            PaymentRow(1, 1, 1, 1000, "succeeded", "paid"),
            PaymentRow(2, 1, 2, 1000, "succeeded", "after"),
        ],
    )
    assert restore.money_of_others(lost, database) == [
        "the money of ann bought (1, 1) of somebody else"
    ]


# Neighbours


def test_what_a_migration_took_from_an_analyst_is_named(
    postgres: EmbeddedPostgres, db: Connection
) -> None:
    with connect(postgres.url(db.info.dbname, "postgres")) as conn:
        conn.execute(neighbours.ANALYST)
        try:
            reserve(conn, item(conn), "ann")
            assert neighbours.missing_things(conn) == []
            conn.execute("revoke select on flashsale.item_status from analyst")
            conn.execute("alter table bi.kept drop column seen cascade")
            missing = [what.split(" (")[0] for what in neighbours.missing_things(conn)]
            assert missing == [
                "a column of ours in a table, and its data",
                "a function on a type of ours",
                "a grant on a view",
            ]
        finally:
            conn.execute("drop schema bi cascade")
            conn.execute("drop owned by analyst")
            conn.execute("drop role analyst")


# Mass


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mass, "PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr(mass, "LOOK_SECONDS", 0.001)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("counts", "problems"),
    [
        ([9, 5, 0], []),
        ([0], ["nothing fell due"]),
        ([9, 5, 5, 5, 0], ["5 of 9 are left, and nothing happens for 0 s"]),
    ],
)
def test_work_that_stands_still_is_found(counts: list[int], problems: list[str]) -> None:
    left: Iterator[int] = iter(counts)
    watched = mass.Progress()
    watched.until_none_is_left(lambda: next(left))
    assert watched.problems == problems


# The deadline


def ordered(ticket: int, status: str, reserved: float = 100, **more: Any) -> OrderRow:
    held = None if status == "waiting" else reserved
    row = OrderRow(
        1, ticket, f"c{ticket}", status, 100, held, held and held + 10, None, None, False
    )
    return row._replace(**more)


@pytest.mark.parametrize(
    ("captured_at", "order", "payment", "is_wrong"),
    [
        (109.99, ordered(1, "paid", paid_at=109.99), "succeeded", False),
        (110.01, ordered(1, "expired", ended_at=110.1), "refunded", False),
        (None, ordered(1, "expired", ended_at=110.1), "voided", False),
        (109.99, ordered(1, "expired", ended_at=112), "refunded", True),
        (110.0, ordered(1, "paid", paid_at=109.99), "succeeded", True),
        (109.99, ordered(1, "paid", paid_at=109.5), "succeeded", True),
        (110.01, ordered(1, "expired", ended_at=110.1), "succeeded", True),
    ],
)
def test_money_that_was_judged_against_the_deadline_is_found(
    captured_at: float | None, order: OrderRow, payment: str, is_wrong: bool
) -> None:
    paid = PaymentRow(1, 1, 1, 1000, payment, "s1")
    database = FinalTables([order], {}, [paid], {}, 0, 0, [], 200)
    found = deadline.misjudged([deadline.TimedPayment((1, 1), captured_at)], database)
    assert bool(found) == is_wrong


# The outage


def test_who_loses_a_place_to_an_outage_is_found() -> None:
    sound = [ordered(1, "reserved", 150), ordered(2, "reserved", 151), ordered(3, "waiting")]
    assert outage.unfair(sound, 2) == []
    expired = [ordered(1, "expired", ended_at=110), *sound[1:]]
    assert outage.unfair(expired, 2) == ["(1, 1) is expired"]
    overtaken = [ordered(1, "reserved", 152), *sound[1:]]
    assert outage.unfair(overtaken, 2) == ["(1, 2) was served before (1, 1)"]


def test_a_wrong_mail_about_an_outage_is_found() -> None:
    right = ("ann", outage.PROMISE)
    assert outage.wrong_mails([right, ("bob", outage.PROMISE)]) == []
    assert outage.wrong_mails([right, right]) == ["ann was told 2 times"]
    (found,) = outage.wrong_mails([right, ("bob", "Shoe: your reservation has expired")])
    assert found.startswith("bob got a wrong mail")


def test_a_mail_in_the_log_is_seen(caplog: pytest.LogCaptureFixture) -> None:
    about = {"order_id": "1", "item_id": 1, "item_name": "shoe", "customer_id": "customer 1"}
    mail = compose(YourTurn(**about), 1)  # type: ignore[arg-type]
    with caplog.at_level("INFO", logger="flashsale.mail"):
        asyncio.run(LogSender(Settings()).send(mail))
    assert outage.MAIL.findall(caplog.text) == [("customer 1", "shoe: it is your turn")]
