"""What the feed costs: the CPU time of Postgres per order, for each way that was tried.

Run `python -m bench.feed`; it takes about two minutes. It is not part of `python -m bench`. The
time is that of the session's process, so other programs on the machine do not count; they still
take its caches. The ways take turns.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable
from pathlib import Path

import psycopg

from flashsale.database.migrate import migrate
from flashsale.testing import postgres_server, value

ROUNDS = 5
CALLS = 40
BATCH = 256
SETTINGS = {"fsync": "off", "synchronous_commit": "off", "autovacuum": "off"}

INTO_OUTBOX = """
  ), noted as (
    insert into flashsale_data.outbox (type, order_id, at)
    select 'order.created', p.order_id, p_now from placed p
  ), queued as ("""
TRIGGER = """
create function flashsale.tell_of_orders() returns trigger language plpgsql as $$
begin
  insert into flashsale_data.outbox (type, order_id, at)
  select 'order.created', n.order_id, n.created_at from made n;
  return null;
end $$;
create trigger tell_of_orders after insert on flashsale_data.orders
referencing new table as made for each statement execute function flashsale.tell_of_orders();
"""
NO_TRIGGER = """
drop trigger if exists tell_of_orders on flashsale_data.orders;
drop function if exists flashsale.tell_of_orders();
"""
NOTED = re.compile(r", noted as \(\n    insert into flashsale_data\.outbox.*?\n  \)", re.DOTALL)
CANCEL_NOTES = re.compile(r",\n      flashsale\.note_orders\('order\.cancelled'[^;]*\)(?=;)")
WRITERS = ("buy_in_time", "expire_orders", "grant_holds", "cancel")


class Bench:
    """A session, and functions as they are and as they would be."""

    def __init__(self, conn: psycopg.Connection) -> None:
        self._conn = conn
        self._pid = value(conn, "select pg_backend_pid()")
        self._runs = 0

    def definition(self, name: str) -> str:
        """The text that makes a function anew."""
        return str(
            value(
                self._conn,
                "select pg_get_functiondef(oid) from pg_proc "
                "where proname = %s and pronamespace = 'flashsale'::regnamespace",
                name,
            )
        )

    def run(self, text: str) -> None:
        """Runs SQL."""
        self._conn.execute(text.encode())

    def cpu(self, text: str) -> float:
        """The CPU time of a statement, in µs."""
        stat = Path(f"/proc/{self._pid}/schedstat")
        before = int(stat.read_text().split()[0])
        self.run(text)
        return (int(stat.read_text().split()[0]) - before) / 1000

    def item(self, stock: int) -> int:
        """A new item."""
        self._runs += 1
        return int(
            value(
                self._conn,
                "select item_id from flashsale.create_item(%s, 'i', 1000, 'EUR', %s, 600)",
                f"i{self._runs}",
                stock,
            )
        )

    def reserve(self, item: int, first: int = 1, last: int = CALLS) -> str:
        """Orders by reserve_many, in as many transactions as there are batches."""
        return f"""
            do $d$ begin for b in {first}..{last} loop
              perform count(*) from flashsale.reserve_many(array_fill({item}, array[{BATCH}]),
                (select array_agg(b || '-' || i) from generate_series(1, {BATCH}) i));
              commit;
            end loop; end $d$"""

    def publish(self) -> str:
        """Publishes all there is."""
        return """
            do $d$ declare v_more boolean; begin loop
              select more into v_more from flashsale.publish_events(); commit;
              exit when not v_more;
            end loop; end $d$"""


def main() -> None:
    """Measures, and prints a table."""
    with (
        postgres_server(settings=SETTINGS) as postgres,
        psycopg.connect(postgres.url(), autocommit=True) as conn,
    ):
        migrate(postgres.url())
        bench = Bench(conn)
        seen: dict[str, list[float]] = {}
        for number in range(ROUNDS + 1):
            for costs in (new_orders(bench), changes(bench)):
                for name, cost in costs.items():
                    if number:  # the first warms up
                        seen.setdefault(name, []).append(cost)
    print(f"{'':<66}    µs  (lowest, highest of {ROUNDS})")
    for name, costs_of in seen.items():
        print(
            f"{name:<66} {statistics.median(costs_of):>6.1f}"
            f"  ({min(costs_of):.1f}, {max(costs_of):.1f})"
        )


def new_orders(bench: Bench) -> dict[str, float]:
    """The events of new orders, in each of the ways."""
    as_it_is = bench.definition("place_orders")
    writes = as_it_is.replace("\n  ), queued as (", INTO_OUTBOX)
    assert writes != as_it_is
    ways: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
        "nothing in reserve_many": (lambda: None, lambda: None),
        "a row in the outbox": (lambda: bench.run(writes), lambda: bench.run(as_it_is)),
        "a trigger": (lambda: bench.run(TRIGGER), lambda: bench.run(NO_TRIGGER)),
    }
    costs: dict[str, float] = {}
    orders = CALLS * BATCH
    for name, (begin, end) in ways.items():
        item = bench.item(stock=10_000_000)
        bench.run(bench.publish())
        bench.run(bench.reserve(item, 1001, 1003))  # plans
        begin()
        bench.run(bench.reserve(item, 1004, 1006))
        costs[f"reserve_many of {BATCH}, an order: {name}"] = (
            bench.cpu(bench.reserve(item)) / orders
        )
        end()
        if name == "nothing in reserve_many":
            costs["publisher: an order announced"] = bench.cpu(bench.publish()) / (
                orders + 6 * BATCH
            )
            costs["publisher: a visit with nothing to do"] = (
                bench.cpu(
                    "do $d$ begin for n in 1..200 loop perform flashsale.publish_events(); commit; "
                    "end loop; end $d$"
                )
                / 200
            )
        else:
            bench.run("delete from flashsale_data.outbox")
            bench.run(bench.publish())
    costs["reader: an event, of 1,000"] = (
        bench.cpu(
            "do $d$ begin for n in 1..10 loop "
            "perform count(*) from flashsale.events(1000, 1000); end loop; end $d$"
        )
        / 10_000
    )
    bench.run("vacuum analyze flashsale_data.outbox, flashsale_data.orders")
    return costs


def changes(bench: Bench) -> dict[str, float]:
    """The verbs that move orders, with and without their rows in the outbox."""
    costs: dict[str, float] = {}
    for name, without in {"without the feed": True, "with it": False}.items():
        definitions = {writer: bench.definition(writer) for writer in WRITERS}
        if without:
            for text in definitions.values():
                changed = CANCEL_NOTES.sub("", NOTED.sub("", text))
                assert changed != text
                bench.run(changed)
        item = bench.item(stock=4 * BATCH)
        bench.run(bench.reserve(item, 1, 12))
        for what, (text, count) in {
            "pay": (each(item, 1, 500, "flashsale.pay(o, 's' || o, 1000, 'EUR')"), 500),
            "cancel": (each(item, 501, 1000, "flashsale.cancel(o)"), 500),
            "promote of 500": (f"select flashsale.promote({item}, 500)", 500),
            "expire of 500": (
                "select flashsale.expire(500)",
                500,
            ),
        }.items():
            if what == "expire of 500":
                bench.run(
                    "update flashsale_data.orders set created_at = created_at - interval '1 h', "
                    "reserved_at = reserved_at - interval '1 h', expires_at = clock_timestamp() "
                    f"where item_id = {item} and status = 'reserved'"
                )
            costs[f"{what}, an order: {name}"] = bench.cpu(text) / count
        for text in definitions.values():
            bench.run(text)
    costs["publisher: an event, a fourth of them changes"] = bench.cpu(bench.publish()) / (
        2000 + 12 * BATCH * 2
    )
    return costs


def each(item: int, first: int, last: int, call: str) -> str:
    """A call per order, each in a transaction of its own. o: the order's id."""
    return f"""
        do $d$ declare o bigint; begin for n in {first}..{last} loop
          o := flashsale.order_id_of({item}, n); perform {call}; commit;
        end loop; end $d$"""


if __name__ == "__main__":
    main()
