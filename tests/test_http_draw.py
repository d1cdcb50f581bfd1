"""The draw over HTTP: from the first entry to the checkout, and checking it from outside."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from flashsale import check_draw, cli
from flashsale.testing import Clock
from http_support import NEW_ITEM, Api, api_fixture  # noqa: F401 - a fixture
from support import Connection, reserve, rows
from test_draw import draw, draw_item, drawn, finish


async def opening(api: Api, clock: Clock, **terms: Any) -> dict[str, Any]:
    """An item with a draw that opens in a minute."""
    made = await api.item(draw=True, opens_at=clock.at(60).isoformat(), **terms)
    assert made["draw"] is True
    return made


async def test_a_draw_from_the_first_entry_to_the_checkout(
    api: Api, db: Connection, clock: Clock
) -> None:
    shoe = await opening(api, clock, stock=1)
    path = f"/items/{shoe['item_id']}/draw"
    before = (await api("GET", path)).json()
    assert (before["state"], before["secret"], before["list_hash"]) == ("entering", None, None)

    key = {"Idempotency-Key": "k1"}
    entered = await api.order(shoe, "ann", headers=key)
    assert entered.status_code == 202
    entry = entered.json()
    assert (entry["status"], entry["ticket"], entry["position"]) == ("entered", None, None)
    assert entered.headers["location"] == f"/orders/{entry['order_id']}"
    again = await api.order(shoe, "ann", headers=key)
    assert (again.status_code, again.json()["order_id"]) == (200, entry["order_id"])
    bob = (await api.order(shoe, "bob")).json()
    gone = (await api.order(shoe, "cat")).json()
    left = await api("DELETE", f"/orders/{gone['order_id']}", customer="cat")
    assert left.json()["status"] == "cancelled"
    assert (await api("GET", f"{path}/entries")).json() == []

    draw(db, clock)
    after = (await api("GET", path)).json()
    assert (after["state"], after["entries"], after["units"]) == ("drawn", 2, 2)
    assert after["commitment"] == before["commitment"]
    assert hashlib.sha256(bytes.fromhex(after["secret"])).hexdigest() == before["commitment"]
    listed = (await api("GET", f"{path}/entries")).json()
    assert [e["entry_id"] for e in listed] == sorted([entry["order_id"], bob["order_id"]], key=int)

    first = min(listed, key=lambda e: e["ticket"])["entry_id"]
    customer = "ann" if first == entry["order_id"] else "bob"
    order = (await api("GET", f"/orders/{first}", customer=customer)).json()
    assert (order["order_id"], order["ticket"], order["status"]) == (first, 1, "reserved")
    assert order["payment"]["status"] == "requested"
    mine = (await api("GET", "/orders", customer=customer)).json()
    assert [o["order_id"] for o in mine] == [first]
    late = await api.order(shoe, "dan")
    assert (late.status_code, late.json()["ticket"]) == (202, 3)


async def test_requests_in_the_moment_of_the_opening_are_told_to_come_back(
    api: Api, db: Connection, clock: Clock
) -> None:
    shoe = await opening(api, clock)
    await api.order(shoe, "ann")
    clock.advance(61)
    refused = await api.order(shoe, "bob")
    assert (refused.status_code, refused.json()["code"]) == (409, "not_open")
    assert int(refused.headers["retry-after"]) >= 1
    finish(db)
    assert (await api.order(shoe, "bob")).json()["ticket"] == 2


async def test_each_problem_of_a_draw_has_its_code(api: Api, db: Connection, clock: Clock) -> None:
    plain = (await api.item())["item_id"]
    for path in (f"/items/{plain}/draw", f"/items/{plain}/draw/entries"):
        assert (await api("GET", path)).json()["code"] == "no_draw"
    assert (await api("GET", "/items/99/draw")).json()["code"] == "unknown_item"
    bad = await api("GET", f"/items/{plain}/draw/entries?limit=0")
    assert bad.json()["code"] == "bad_value"
    shoe = await opening(api, clock, sku="drawn")
    draw(db, clock)
    later = {"opens_at": (clock.at(60)).isoformat()}
    assert (await api("PATCH", f"/items/{shoe['item_id']}", json=later)).json()[
        "code"
    ] == "draw_has_begun"
    new = {"draw": True, "opens_at": None}
    refused = await api("POST", "/items", json=NEW_ITEM | {"sku": "never"} | new)
    assert (refused.status_code, refused.json()["code"]) == (422, "bad_value")


async def test_the_list_of_a_draw_has_pages(api: Api, db: Connection, clock: Clock) -> None:
    shoe = await opening(api, clock)
    entries = [(await api.order(shoe, f"c{n}")).json()["order_id"] for n in range(5)]
    draw(db, clock)
    found, after = [], ""
    while page := (
        await api("GET", f"/items/{shoe['item_id']}/draw/entries?limit=2{after}")
    ).json():
        found += [e["entry_id"] for e in page]
        after = f"&after={found[-1]}"
    assert found == sorted(entries, key=int)


async def test_a_draw_may_be_cached(api: Api, clock: Clock) -> None:
    shoe = await opening(api, clock)
    first = await api("GET", f"/items/{shoe['item_id']}/draw")
    assert first.headers["cache-control"] == "public, max-age=1"
    again = await api(
        "GET", f"/items/{shoe['item_id']}/draw", headers={"If-None-Match": first.headers["etag"]}
    )
    assert again.status_code == 304


# check-draw


class Published:
    """What a draw publishes, to be served and falsified."""

    def __init__(self, db: Connection, clock: Clock, count: int = 6) -> None:
        shoe = draw_item(db, clock)
        self.ids = [reserve(db, shoe, f"c{n}").order_id for n in range(count)]
        draw(db, clock)
        row = drawn(db, shoe)
        self.draw = {name: getattr(row, name) for name in row._fields}
        self.entries = [
            check_draw.Entry(str(e.entry_id), e.quantity, e.ticket)
            for e in rows(db, "select * from flashsale.draw_entries(%s)", shoe)
        ]


def moved(published: Published) -> None:
    one, other = published.entries[:2]
    published.entries[:2] = [
        one._replace(ticket=other.ticket),
        other._replace(ticket=one.ticket),
    ]


def left_out(published: Published) -> None:
    del published.entries[0]


def other_secret(published: Published) -> None:
    published.draw["secret"] = "00" * 32


def other_commitment(published: Published) -> None:
    published.draw["secret"] = "00" * 32
    published.draw["commitment"] = hashlib.sha256(bytes(32)).hexdigest()


def other_quantity(published: Published) -> None:
    published.entries[0] = published.entries[0]._replace(quantity=2)


def test_check_draw_finds_nothing_in_a_draw_as_it_was(db: Connection, clock: Clock) -> None:
    published = Published(db, clock)
    assert list(check_draw.faults(published.draw, published.entries)) == []


@pytest.mark.parametrize(
    ("falsify", "told"),
    [
        (moved, "should have"),
        (left_out, "the list has 5 entries"),
        (other_secret, "the commitment has announced"),
        (other_commitment, "the list is not the one whose hash was published"),
        (other_quantity, "the list is not the one whose hash was published"),
    ],
)
def test_check_draw_finds_each_fault(
    db: Connection, clock: Clock, falsify: Callable[[Published], None], told: str
) -> None:
    published = Published(db, clock)
    falsify(published)
    assert told in "; ".join(check_draw.faults(published.draw, published.entries))


def serve_to(monkeypatch: pytest.MonkeyPatch, published: Published) -> None:
    """Lets check-draw read what is published, in pages of 4."""
    monkeypatch.setattr(check_draw, "_PAGE", 4)

    def get(url: str, path: str) -> Any:
        assert url == "http://127.0.0.1:8000"
        if path.endswith("/draw"):
            return published.draw
        after = int(path.partition("after=")[2] or 0)
        page = [e._asdict() for e in published.entries if int(e.entry_id) > after]
        return json.loads(json.dumps(page[:4]))

    monkeypatch.setattr(check_draw, "_get", get)


def test_the_command_check_draw_says_what_it_proves(
    db: Connection, clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    published = Published(db, clock)
    serve_to(monkeypatch, published)
    mine, commitment = str(published.ids[0]), published.draw["commitment"]
    assert cli.main(["check-draw", "1", "--entry", mine, "--commitment", commitment]) == 0
    out = capsys.readouterr().out
    assert "All 6 entries have the places" in out
    assert "It does not prove:" in out and f"{mine} is on the list" in out
    assert cli.main(["check-draw", "1", "--commitment", "00" * 32]) == 1
    assert cli.main(["check-draw", "1", "--entry", "7"]) == 1
    assert "7 is not on the list" in capsys.readouterr().err
    moved(published)
    assert cli.main(["check-draw", "1"]) == 1
    published.draw["state"] = "drawing"
    assert cli.main(["check-draw", "1"]) == 1
    assert "this draw is drawing" in capsys.readouterr().err


def test_the_command_check_draw_needs_a_service(capsys: Any) -> None:
    assert cli.main(["check-draw", "1", "--url", "http://127.0.0.1:9"]) == 1
    assert cli.main(["check-draw", "1", "--url", "ftp://x"]) == 1
    with pytest.raises(SystemExit):
        cli.main(["check-draw", "shoe"])
