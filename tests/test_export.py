"""flashsale export: the orders of an item as CSV that a spreadsheet reads as it is meant."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from pathlib import Path

import pytest

from flashsale.cli import main
from flashsale.database import export as exporting
from support import Connection, item, many, pay, reserve, rows, value


@pytest.fixture(autouse=True)
def configured(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHSALE_DATABASE_URL", database_url)


def exported(capsys: pytest.CaptureFixture[str], item_id: int) -> list[dict[str, str]]:
    assert main(["export", str(item_id)]) == 0
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_every_order_of_the_item_is_a_line_by_ticket(
    db: Connection, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "PAGE", 2)
    boot, shoe = item(db, "boot"), item(db, stock=2)
    reserve(db, boot, "ann")
    pay(db, reserve(db, shoe, "ann"))
    many(db, shoe, ["bob", "cem", 'd"a,n', "eva"])
    lines = exported(capsys, shoe)
    assert [(o["ticket"], o["customer_id"], o["status"]) for o in lines] == [
        ("1", "ann", "paid"),
        ("2", "bob", "reserved"),
        ("3", "cem", "waiting"),
        ("4", 'd"a,n', "waiting"),
        ("5", "eva", "waiting"),
    ]
    assert (lines[0]["amount"], lines[0]["currency"]) == ("1000", "EUR")
    assert lines[0]["paid_at"].endswith("+00:00")
    assert "checkout_url" not in lines[0] and "outcome" not in lines[0]


@pytest.mark.parametrize("start", ["=", "+", "-", "@"])
def test_no_cell_is_a_formula(
    db: Connection, capsys: pytest.CaptureFixture[str], start: str
) -> None:
    shoe = item(db)
    reserve(db, shoe, f"{start}1+1")
    (line,) = exported(capsys, shoe)
    assert line["customer_id"] == f"'{start}1+1"


def test_an_item_without_orders_has_a_header(
    db: Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    shoe = item(db)
    assert main(["export", str(shoe)]) == 0
    assert capsys.readouterr().out.startswith("order_id,item_id,customer_id,status,ticket")


def test_an_unknown_item_is_an_error(db: Connection, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "7"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "flashsale: There is no such item. (item_id 7)\n"


@pytest.mark.parametrize("given", ["x", "0", "-1", "1.5", "99999999999"])
def test_what_is_no_item_is_refused(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["export", given])
    assert end.value.code == 2


def test_a_database_that_is_not_there_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLASHSALE_DATABASE_URL", "postgresql://x:secret@127.0.0.1:1/x")
    assert main(["export", "1"]) == 1
    said = capsys.readouterr().err
    assert "can't be reached" in said and "secret" not in said


def test_without_a_service_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv("FLASHSALE_DATABASE_URL")
    assert main(["export", "1", "--data-dir", str(tmp_path)]) == 2
    assert "no database" in capsys.readouterr().err


def test_a_reader_may_stop_early(db: Connection) -> None:
    shoe = item(db, stock=0)
    many(db, shoe, [f"customer-with-a-long-name-{n}" for n in range(1000)])
    command = [sys.executable, "-m", "flashsale", "export", str(shoe)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline().startswith(b"order_id,")
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_it_reads_as_an_operator(db: Connection, capsys: pytest.CaptureFixture[str]) -> None:
    shoe = item(db)
    exported(capsys, shoe)
    assert value(db, "select pg_has_role('flashsale_staff', 'flashsale_operator', 'member')")
    assert rows(
        db, "select rolsuper, rolcreaterole from pg_roles where rolname = %s", "flashsale_staff"
    ) == [(False, False)]
