"""Postgres dies in the middle of a storm, with fsync on: nothing acknowledged is lost."""

from __future__ import annotations

import os
import random
import signal
from functools import partial
from typing import Any

import psycopg
import pytest

from flashsale.database.migrate import migrate
from flashsale.dev.postgres import EmbeddedPostgres
from support import (
    Call,
    call,
    cluster_folder,
    connect,
    eventually,
    item,
    item_status,
    many,
    pay,
    reserve,
    rows,
    settle,
    sweep,
)

STOCK = 40


def storm_until_the_crash(url: str, item_id: int, seed: int, acknowledged: list[Any]) -> None:
    dice = random.Random(seed)
    with connect(url) as conn:
        for n in range(100_000):
            try:
                if dice.random() < 0.1:
                    with conn.transaction(force_rollback=True):
                        reserve(conn, item_id, f"gone {seed}-{n}")
                    continue
                order = reserve(conn, item_id, f"{seed}-{n}", f"key {n}")
                acknowledged.append(order)
                if order.outcome == "reserved" and dice.random() < 0.3:
                    acknowledged.append(pay(conn, order))
                elif dice.random() < 0.2:
                    acknowledged.append(call(conn, "cancel", order.order_id))
            except psycopg.OperationalError:
                return


def sweep_until_the_crash(url: str) -> None:
    with connect(url) as conn:
        while True:
            try:
                sweep(conn)
            except psycopg.OperationalError:
                return


@pytest.mark.parametrize("victim", ["postmaster", "backend"])
@pytest.mark.slow
def test_a_crash_in_a_storm_loses_nothing(victim: str) -> None:
    with cluster_folder() as folder:
        server = EmbeddedPostgres(folder).start()
        migrate(server.url())
        with connect(server.url()) as conn:
            shoe = item(conn, stock=STOCK, hold_seconds=1)
            backend = conn.info.backend_pid
            acknowledged: list[Any] = []
            storm = [
                Call(partial(storm_until_the_crash, server.url(), shoe, s, acknowledged))
                for s in range(4)
            ]
            storm.append(Call(lambda: sweep_until_the_crash(server.url())))
            eventually(lambda: len(acknowledged) > 200, 60)
            # A backend that dies takes all others with it: Postgres restarts by itself.
            os.kill(server.pid if victim == "postmaster" else backend, signal.SIGKILL)
            for running in storm:
                running.result()
        if victim == "postmaster":
            eventually(lambda: not server.is_running())
            server = EmbeddedPostgres(folder)
            server.start()
        try:
            after_the_crash(server.url(), shoe, acknowledged)
        finally:
            server.stop()


def after_the_crash(url: str, shoe: int, acknowledged: list[Any]) -> None:
    def reconnect() -> Any:
        try:
            return connect(url)
        except psycopg.OperationalError:
            return None

    with eventually(reconnect, 30) as conn:
        found = {
            row.order_id: row
            for row in rows(
                conn, "select order_id, ticket, expires_at, status from flashsale.order_status"
            )
        }
        for order in acknowledged:
            kept = found[order.order_id]
            assert kept.ticket == order.ticket
            if order.outcome == "reserved":
                assert kept.expires_at == order.expires_at
            if order.outcome in ("paid", "cancelled"):
                assert kept.status == order.outcome
        tickets = [row.ticket for row in found.values()]
        assert len(tickets) == len(set(tickets))
        # The sequence skipped some tickets: their units are sold all the same.
        many(conn, shoe, [f"late {n}" for n in range(STOCK)])

        def sell_out() -> bool:
            settle(conn)
            for held in rows(
                conn,
                "select * from flashsale.order_status where order_id = any (array("
                "select order_id from flashsale.open_reservation))",
            ):
                pay(conn, held)
            sweep(conn)
            return bool(item_status(conn, shoe).paid == STOCK)

        eventually(sell_out, 60)
        assert rows(conn, "select * from flashsale.violation") == []
