"""A row that no verb would have written breaks nobody else's answer."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from flashsale.api.intake import Intake
from flashsale.database.jobs import Jobs
from flashsale.models import UnitAnswer, UnitRequest
from http_support import LocalApi, api_fixture, settings  # noqa: F401 - fixtures
from support import Connection, item, reserve

ODD = ["20026-01-01", "infinity", "-infinity", "0044-03-15 BC"]
BOUNDS = "items_opens_at_is_in_range", "items_closes_at_is_in_range"


def corrupt(db: Connection, item_id: int, opens_at: str) -> None:
    """As an item of an older version could be."""
    for bound in BOUNDS:
        db.execute(f"alter table flashsale_data.items drop constraint if exists {bound}")
    db.execute(
        "update flashsale_data.items set opens_at = %s where item_id = %s", [opens_at, item_id]
    )


@pytest.mark.parametrize("odd", ODD)
async def test_an_item_with_an_odd_date_is_listed_among_the_others(
    api: LocalApi, db: Connection, odd: str
) -> None:
    shoe, odd_one = await api.item(), await api.item(sku="odd")
    corrupt(db, odd_one["item_id"], odd)
    listed = await api("GET", "/items")
    assert listed.status_code == 200, listed.text
    assert [i["sku"] for i in listed.json()] == ["shoe", "odd"]
    assert (await api("GET", f"/items/{shoe['item_id']}")).status_code == 200
    assert (await api("GET", f"/items/{odd_one['item_id']}")).status_code == 200
    mended = {"opens_at": "2020-01-01T00:00:00Z"}
    assert (await api("PATCH", f"/items/{odd_one['item_id']}", json=mended)).status_code == 200


async def test_a_batch_with_an_item_of_an_odd_date_answers_each_customer(
    api: LocalApi, db: Connection
) -> None:
    shoe, odd_one = await api.item(stock=100), await api.item(sku="odd")
    corrupt(db, odd_one["item_id"], "20026-01-01")
    asked = [odd_one if n in (3, 50, 97) else shoe for n in range(100)]
    answers = await asyncio.gather(*(api.order(i, f"c{n}") for n, i in enumerate(asked)))
    codes = [answer.status_code for answer in answers]
    assert codes == [409 if i is odd_one else 201 for i in asked]
    assert {a.json()["code"] for a in answers if a.status_code == 409} == {"not_open"}


async def test_a_job_of_an_order_with_an_odd_date_is_leased_with_the_others(
    db: Connection, database_url: str
) -> None:
    shoe = item(db, stock=2)
    orders = [reserve(db, shoe, customer) for customer in ("ann", "bob")]
    db.execute(
        "update flashsale_data.orders set expires_at = '20026-01-01' where order_id = %s",
        [orders[0].order_id],
    )
    async with Jobs(settings(database_url)) as jobs:
        leased = await jobs.take_payment_jobs(10, 30)
    assert [job.columns["order_id"] for job in leased] == [o.order_id for o in orders]
    assert leased[0].columns["expires_at"] == datetime.max.replace(tzinfo=UTC)
    assert leased[1].columns["expires_at"] == orders[1].expires_at


class GivenRows:
    """A database that has these answers to a batch."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    async def reserve(self, request: UnitRequest, deadline: float) -> Any:
        raise AssertionError("the requests travel together")

    async def reserve_many(self, requests: Any, deadline: float) -> Any:
        return self.rows

    async def find_held(self, requests: Any, deadline: float) -> Any:
        raise AssertionError("nobody is held")

    def unit_answer(self, row: Any) -> UnitAnswer:
        if row == "odd":
            raise ValueError(row)
        return UnitAnswer(row, None, None)


async def told(database_url: str, rows: list[Any]) -> list[Any]:
    """The outcomes and errors that three customers of a batch hear of, if these are its rows."""
    intake = Intake(GivenRows(rows), settings(database_url))
    asked = [intake.reserve(UnitRequest(1, customer)) for customer in ("ann", "bob", "cid")]
    async with asyncio.timeout(30):
        heard = await asyncio.gather(*asked, return_exceptions=True)
    return [h.outcome if isinstance(h, UnitAnswer) else type(h) for h in heard]


async def test_a_row_that_can_not_be_read_is_an_error_of_its_customer_alone(
    database_url: str,
) -> None:
    assert await told(database_url, ["a", "odd", "c"]) == ["a", ValueError, "c"]


async def test_a_batch_with_too_few_answers_leaves_nobody_waiting(database_url: str) -> None:
    assert await told(database_url, ["a", "b"]) == [ValueError] * 3
