"""OpenAPI: every operation has examples and its errors; Structs are what SQL returns."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from flashsale import models
from flashsale.models import Item, Order, Payment
from flashsale.refusals import CODES
from http_support import Api, api_fixture, serving, settings  # noqa: F401 - fixtures
from support import Connection, rows

ANY = "400 500"
CONTRACT = {
    ("post", "/items"): "201 408 409 413 415 422 503",
    ("get", "/items"): "200 304 422 503",
    ("get", "/items/{item_id}"): "200 304 404 503",
    ("get", "/items/{item_id}/draw"): "200 304 404 503",
    ("get", "/items/{item_id}/draw/entries"): "200 404 422 503",
    ("patch", "/items/{item_id}"): "200 404 408 409 413 415 422 503",
    ("post", "/items/{item_id}/extension"): "200 404 408 413 415 422 503",
    ("get", "/items/{item_id}/orders"): "200 404 422 503",
    ("post", "/items/{item_id}/orders"): "200 201 202 401 404 408 409 413 415 422 503",
    ("get", "/orders"): "200 401 404 422 503",
    ("get", "/orders/{order_id}"): "200 401 404 503",
    ("delete", "/orders/{order_id}"): "200 401 404 409 422 503",
    ("post", "/orders/{order_id}/payment"): "202 401 404 409 422 503",
    ("get", "/orders/{order_id}/events"): "200 204 401 404 503",
    ("post", "/orders/{order_id}/refund"): "200 404 408 409 413 415 422 503",
    ("post", "/orders/{order_id}/offline-payment"): "200 404 408 409 413 415 422 503",
    ("post", "/webhooks/payments"): "200 401 408 413 415 422 503",
    ("get", "/events"): "200 409 422 503",
    ("get", "/health/live"): "200",
    ("get", "/health/ready"): "200 503",
    ("get", "/metrics"): "200",
}


async def schema() -> dict[str, Any]:
    async with serving(settings("postgresql://nobody@127.0.0.1:1/nothing")) as api:
        response = await api("GET", "/schema/openapi.json")
        assert response.status_code == 200
        assert (await api("GET", "/schema")).json() == response.json()
        assert (await api("GET", "/schema/openapi.yaml")).status_code == 200
        assert "http://" not in response.text.replace("http://127.0.0.1", "")
        assert "https://" not in response.text
        return response.json()  # type: ignore[no-any-return]


async def test_every_operation_tells_its_answers_with_examples() -> None:
    operations = {
        (method, path): operation
        for path, item in (await schema())["paths"].items()
        for method, operation in item.items()
    }
    assert {key: set(o["responses"]) for key, o in operations.items()} == {
        key: {*statuses.split(), *ANY.split()} for key, statuses in CONTRACT.items()
    }
    for key, operation in operations.items():
        assert operation["description"], key
        for status, response in operation["responses"].items():
            if status in ("204", "304"):
                assert "content" not in response
                continue
            for media_type, content in response["content"].items():
                examples = [e["value"] for e in content["examples"].values()]
                assert examples, (key, status)
                if int(status) < 400:
                    continue
                assert media_type == "application/problem+json"
                for example in examples:
                    assert CODES[example["code"]].status == example["status"] == int(status)
                    assert f"`{example['code']}`" in response["description"]


async def test_every_request_body_has_an_example() -> None:
    document = await schema()
    bodies = {
        (method, path): operation["requestBody"]
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if "requestBody" in operation
    }
    assert set(bodies) == {
        ("post", "/items"),
        ("patch", "/items/{item_id}"),
        ("post", "/items/{item_id}/extension"),
        ("post", "/items/{item_id}/orders"),
        ("post", "/orders/{order_id}/refund"),
        ("post", "/orders/{order_id}/offline-payment"),
        ("post", "/webhooks/payments"),
    }
    for key, body in bodies.items():
        assert body["required"] == (key != ("post", "/items/{item_id}/orders"))
        found = body["content"]["application/json"]["schema"]
        if "$ref" in found:
            found = document["components"]["schemas"][found["$ref"].rsplit("/", 1)[1]]
        assert found["examples"], key


async def test_bodies_refuse_unknown_fields_except_the_provider_s_events() -> None:
    document = await schema()
    bodies = {
        name
        for item in document["paths"].values()
        for operation in item.values()
        for name in re.findall(r"#/components/schemas/(\w+)", str(operation.get("requestBody")))
    }
    assert len(bodies) >= 4
    schemas = document["components"]["schemas"]
    refusing = {name for name in schemas if schemas[name].get("additionalProperties") is False}
    assert bodies - refusing == {"PaymentEvent"}
    assert refusing == {
        name
        for name, kind in vars(models).items()
        if isinstance(kind, type)
        and issubclass(kind, msgspec.Struct)
        and kind.__struct_config__.forbid_unknown_fields
    }


async def test_every_code_is_in_the_description() -> None:
    description = (await schema())["info"]["description"]
    for code, (status, meaning) in CODES.items():
        assert f"| `{code}` | {status} | {meaning} |" in description


def columns(db: Connection, relation: str) -> list[str]:
    return [
        row.attname
        for row in rows(
            db,
            "select attname from pg_attribute where attrelid = %s::regclass and attnum > 0 "
            "order by attnum",
            relation,
        )
    ]


def test_structs_are_the_rows_that_sql_returns(db: Connection) -> None:
    assert [f.name for f in msgspec.structs.fields(Item)] == columns(db, "flashsale.item_status")
    order = [f.name for f in msgspec.structs.fields(Order) if f.name != "forecast"]
    forecast = ["chance", "forecast_as_of"]
    payment = [f.name.replace("status", "payment_status") for f in msgspec.structs.fields(Payment)]
    n = order.index("payment")
    late, *units = order[n + 1 :]
    row = ["outcome", *order[:n], *payment[:-1], "retry_at", late, payment[-1], *units, *forecast]
    assert row == columns(db, "flashsale.order_row")
