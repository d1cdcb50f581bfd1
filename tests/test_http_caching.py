"""What caches may keep: items for a second, and nothing else. HEAD is GET without the body."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec
import pytest

from flashsale.api.caching import public
from flashsale.api.examples import ITEM
from flashsale.models import Item
from http_support import NEW_ITEM, LocalApi, api_fixture, serving, settings  # noqa: F401 - fixtures
from support import Connection, sweep

PRIVATE = "private, no-store"


def caching(response: httpx.Response) -> list[str]:
    return response.headers.get_list("cache-control")


async def test_nothing_that_concerns_an_order_may_be_stored(api: LocalApi) -> None:
    item = await api.item()
    answers = [await api.order(item, "ann"), await api.order(item, "ann")]
    answers += [await api.order(item, "bob", json={"wait": False}), await api.order(item, "bob")]
    path = f"/orders/{answers[0].json()['order_id']}"
    assert [a.status_code for a in answers] == [201, 200, 409, 202]
    answers += [await api("GET", "/orders", "ann"), await api("GET", path, "ann")]
    answers += [await api("POST", f"{path}/payment", "ann"), await api("DELETE", path, "ann")]
    answers += [await api("GET", f"{path}/events", "ann"), await api("GET", path, "bob")]
    answers += [await api("HEAD", path, "ann"), await api("GET", "/orders")]
    for answer in answers:
        assert caching(answer) == [PRIVATE], answer.request


@pytest.mark.parametrize("express", [True, False])
async def test_no_refusal_may_be_stored(
    api: LocalApi, monkeypatch: pytest.MonkeyPatch, express: bool
) -> None:
    if express:
        monkeypatch.setattr(api.app.state.service.intake, "retry_after", lambda: 7)
    for method, path in (
        ("POST", "/items/1/orders"),
        ("POST", "/items/01/orders"),
        ("GET", "/items/1"),
        ("GET", "/items?limit=0"),
        ("GET", "/nothing"),
        ("GET", "/items/%31"),
        ("PUT", "/items"),
        ("POST", "/webhooks/payments"),
    ):
        answer = await api(method, path, "ann")
        assert answer.status_code >= 400
        assert caching(answer) == [PRIVATE], (method, path)


async def test_no_answer_of_the_service_about_itself_may_be_stored(database_url: str) -> None:
    async with serving(settings("postgresql://nobody@127.0.0.1:1/nothing")) as api:
        for path in ("/health/live", "/health/ready", "/metrics"):
            for method in ("GET", "HEAD"):
                assert caching(await api(method, path)) == [PRIVATE]


async def test_what_staff_change_may_not_be_stored(api: LocalApi) -> None:
    made = await api("POST", "/items", json=NEW_ITEM)
    changed = await api("PATCH", f"/items/{made.json()['item_id']}", json={"paused": True})
    assert [caching(made), caching(changed)] == [[PRIVATE], [PRIVATE]]


async def test_items_may_be_stored_for_a_second_and_asked_for_again_with_their_tag(
    api: LocalApi, db: Connection
) -> None:
    item = await api.item()
    sweep(db)
    for path in (f"/items/{item['item_id']}", "/items", "/items?limit=1"):
        first = await api("GET", path)
        tag = first.headers["etag"]
        assert first.status_code == 200 and caching(first) == ["public, max-age=1"]
        strong = tag.removeprefix("W/")
        for known in (tag, strong, f'"other", {tag}', f'{strong},W/"x"', "*"):
            same = await api("GET", path, headers={"If-None-Match": known})
            assert (same.status_code, same.content) == (304, b""), known
            assert same.headers["etag"] == tag and caching(same) == ["public, max-age=1"]
            assert "content-type" not in same.headers
        for unknown in ('"other"', strong.strip('"'), ""):
            other = await api("GET", path, headers={"If-None-Match": unknown})
            assert other.status_code == 200 and other.json() == first.json()
    path = f"/items/{item['item_id']}"
    before = await api("GET", path)
    sweep(db)
    swept = await api("GET", path, headers={"If-None-Match": before.headers["etag"]})
    assert swept.status_code == 304
    await api.order(item, "ann")
    after = await api("GET", path, headers={"If-None-Match": before.headers["etag"]})
    assert after.status_code == 200
    assert after.json()["issued"] == 1


async def test_head_is_get_without_the_body(api: LocalApi, db: Connection) -> None:
    item = await api.item()
    order = (await api.order(item, "ann")).json()
    sweep(db)  # so that as_of stays as it is
    for path in (
        "/items",
        f"/items/{item['item_id']}",
        "/items/2147483647",
        "/orders",
        f"/orders/{order['order_id']}",
        f"/items/{item['item_id']}/orders",
        "/health/live",
        "/schema",
        "/nothing",
        "/items/01",
    ):
        get, head = [await api(method, path, "ann") for method in ("GET", "HEAD")]
        assert (head.status_code, head.content) == (get.status_code, b""), path
        assert head.headers == get.headers, path
    tag = (await api("HEAD", "/items")).headers["etag"]
    assert (await api("HEAD", "/items", headers={"If-None-Match": tag})).status_code == 304
    assert (await api("HEAD", f"/items/{item['item_id']}/extension", "ann")).status_code == 405


def test_the_tag_is_that_of_everything_but_the_time_of_the_counts() -> None:
    def tag(**changes: Any) -> str:
        return str(public(msgspec.structs.replace(ITEM, **changes), None).headers["ETag"])

    assert tag(as_of=ITEM.created_at) == tag()
    for name in set(Item.__struct_fields__) - {"as_of", "created_at"}:
        assert tag(**{name: "another"}) != tag(), name
    tags = [public(items, None).headers["ETag"] for items in ([], [ITEM], [ITEM, ITEM])]
    assert len(set(tags)) == 3
