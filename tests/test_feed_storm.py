"""The storm of the feed: writers that commit late, and a reader that must miss nothing."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter

import pytest

from flashsale.testing import call_all
from support import Call, Connection, call, connect, item, rows, value

EVENTS = 100_000
WRITERS = 4
SECONDS = 240  # against a storm that hangs; on a quiet machine it takes half a minute


def write(url: str, seed: int, item_id: int, stop: threading.Event) -> None:
    """Reserves and cancels in transactions that stay open for random times; some roll back."""
    chance = random.Random(seed)
    with connect(url, autocommit=False) as conn:
        batch = 0
        held: list[int] = []
        while not stop.is_set():
            size = chance.choice((1, 10, 500, 1000))
            customers = [f"w{seed} {batch} {n}" for n in range(size)]
            batch += 1
            made = rows(
                conn,
                "select order_id from flashsale.reserve_many(array_fill(%s::int, array[%s::int]), "
                "%s::text[])",
                item_id,
                size,
                customers,
            )
            cancelled, held_back = held[: size * 2], held[size * 2 :]
            conn.execute(
                "select count(flashsale.cancel(o)) from unnest(%s::bigint[]) o", [cancelled]
            )
            stop.wait(chance.choice((0, 0, 0.01, 0.1, 0.5)))
            if chance.random() < 0.1:
                conn.rollback()
                continue
            conn.commit()
            held = held_back + [row.order_id for row in made]


def publish(url: str, stop: threading.Event) -> None:
    """What a runner does, faster. Two of them are at work."""
    with connect(url) as conn:
        while not stop.is_set():
            more = call(conn, "publish_events").more
            stop.wait(0 if more else 0.02)


def is_drained(reader: Connection, cursor: int) -> bool:
    """Whether there is nothing left to publish or to read."""
    return (
        value(reader, "select count(*) from flashsale_data.outbox") == 0
        and call(reader, "publish_events").published == 0
        and not call_all(reader, "events", cursor, 1)
    )


@pytest.mark.storm
@pytest.mark.timeout(300)
def test_a_reader_gets_100_000_events_each_once_and_in_order(
    db: Connection, database_url: str
) -> None:
    shoe = item(db, stock=1_000_000)
    stop, done = threading.Event(), threading.Event()
    seen: list[tuple[int, str, int | None]] = []
    cursor = 0
    with connect(database_url) as reader:
        writers = [
            Call(lambda seed=seed: write(database_url, seed, shoe, stop))  # type: ignore[misc]
            for seed in range(WRITERS)
        ]
        publishers = [Call(lambda: publish(database_url, done)) for _ in range(2)]
        began = time.monotonic()
        while True:
            page = call_all(reader, "events", cursor, 1000)
            seen += [(event.event_id, event.type, event.order_id) for event in page]
            if page:
                cursor = page[-1].event_id
                continue
            if len(seen) >= EVENTS:
                stop.set()
            if (
                stop.is_set()
                and not any(writer.is_alive() for writer in writers)
                and is_drained(reader, cursor)
            ):
                break
            assert time.monotonic() < began + SECONDS, f"only {len(seen)} events"
            time.sleep(0.005)
        done.set()
        for thread in (*writers, *publishers):
            thread.result()

    assert len(seen) >= EVENTS
    stored = rows(db, "select event_id from flashsale_data.events order by event_id")
    assert [event_id for event_id, _, _ in seen] == [row.event_id for row in stored]
    told = Counter((kind, order_id) for _, kind, order_id in seen)
    assert set(told.values()) == {1}
    states = rows(db, "select order_id, status from flashsale_data.orders where status <> 'void'")
    assert {order_id for kind, order_id in told if kind == "order.created"} == {
        row.order_id for row in states
    }
    assert {order_id for kind, order_id in told if kind == "order.cancelled"} == {
        row.order_id for row in states if row.status == "cancelled"
    }
    created: set[int | None] = set()
    for _, kind, order_id in seen:
        if kind == "order.created":
            created.add(order_id)
        elif kind == "order.cancelled":
            assert order_id in created
