"""prove/faults/every_commit.py reports an error that exists only between two commits."""

from __future__ import annotations

import pytest
from prove.faults import every_commit

from support import Connection

FORGED = (
    "insert into flashsale_data.orders (order_id, item_id, ticket, customer_id, status, "
    "created_at, reserved_at, expires_at) values (flashsale.order_id_of(1, %(ticket)s), 1, "
    "%(ticket)s, 'mallory', 'reserved', now(), now(), now() + '1 s')"
)


READY = (
    "update pg_index set indisready = %s "
    "where indexrelid = 'flashsale_data.orders_one_open_per_customer'::regclass"
)


def spoil(conn: Connection) -> None:
    """Gives two units to one customer who has not reserved them; the next commit removes them.

    The unique index has to stay, because `reserve` needs it, but it must not see these two rows.
    """
    with conn.transaction():
        conn.execute(READY, [False])
        conn.execute(FORGED, {"ticket": 1_000_000})
        conn.execute(FORGED, {"ticket": 1_000_001})
        conn.execute(READY, [True])
    conn.execute("delete from flashsale_data.orders where customer_id = 'mallory'")


@pytest.mark.storm
def test_a_violation_at_a_single_commit_is_found() -> None:
    row = every_commit.prove(points=10_000, calls=60, seed=1, crashes=0, plant=spoil)
    said = "\n".join(row.violations)
    for what in (
        "violation: ('served out of turn'",
        "violation: ('every ticket is of its line'",
        "a unit beyond the line's turn",
        "two live orders of a customer",
        "a payment to be opened without exactly one job",
        "an illegal step",
    ):
        assert what in said
    places = {line.split(":")[0] for line in row.violations}
    assert len(places) < row.injected / 2  # the violation has come and gone


@pytest.mark.storm
def test_an_acknowledged_order_that_is_missing_is_found() -> None:
    def lose(conn: Connection) -> None:
        conn.execute("delete from flashsale_data.orders where ticket = 1")

    # At a single point, the state can only be compared with the answers to clients.
    row = every_commit.prove(points=1, calls=60, seed=1, crashes=0, plant=lose)
    assert any("acknowledged, and lost" in line for line in row.violations)
