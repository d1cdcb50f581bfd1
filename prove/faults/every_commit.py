"""A crash after every commit: the promises hold in every state that a recovery can reach.

A storm writes WAL from a known state on. A hot standby starts in that state and is given the same
WAL in pieces, each of which ends right after a commit. It replays the piece, and waits. Its state
is then the one that a crash at this commit would leave behind, and it is checked whether

- `flashsale.violation` is empty, and so are queries written independently of it,
- nothing that was acknowledged by then is missing or different,
- each order has gone on from the point before by legal steps only.

At some of the points a copy of the cluster recovers from a real crash: it starts with the WAL up to
there, as the service starts Postgres, and has to sell until every unit of every item is paid.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from flashsale.database.migrate import migrate
from flashsale.dev.postgres import EmbeddedPostgres
from flashsale.testing.calls import Connection, item, value
from flashsale.testing.servers import server_folder
from prove.customers.sql_sale import ITEMS, MAX_PER_CUSTOMER, MAX_PER_ORDER, SqlSale, Told
from prove.judge.aftermath import honours, sell_out
from prove.judge.records import NEXT
from prove.report import Row
from prove.stage.cluster import admin, copy, kill

SEGMENT = 16 * 2**20
SETTINGS = {"wal_keep_size": "16GB", "max_wal_size": "16GB", "checkpoint_timeout": "1h"}
"""No WAL goes away."""
FED = SETTINGS | {"wal_retrieve_retry_interval": "1ms"}

RAW = {
    "more units are held or paid than there are": """
        select i.sku, count(*), i.stock
        from flashsale_data.items i join flashsale_data.orders o using (item_id)
        where o.status in ('reserved', 'settling', 'paid')
        group by i.item_id having count(*) > i.stock""",
    "a unit beyond the line's turn": """
        with turn as (
          select i.item_id, i.stock + count(o.*) filter (where o.recycled) + coalesce((
              select sum(w.last_ticket - w.first_ticket + 1)
              from flashsale_data.withdrawn_tickets w where w.item_id = i.item_id), 0)
            as now_serving
          from flashsale_data.items i join flashsale_data.orders o using (item_id)
          group by i.item_id)
        select o.order_id, o.status
        from flashsale_data.orders o join turn t using (item_id)
        where o.status in ('reserved', 'settling', 'paid') and o.ticket > t.now_serving""",
    "two live orders of a customer": """
        select o.item_id, o.customer_id, count(*) from flashsale_data.orders o
        where o.status in ('waiting', 'reserved', 'settling', 'paid')
        group by o.item_id, o.customer_id having count(*) > 1""",
    "a hold with several payments": """
        select p.order_id, count(*)
        from flashsale_data.payments p
        where p.reference is null and p.order_id is not null -- neither a till's nor stray
        group by p.order_id having count(*) <> 1""",
    "a payment to be opened without exactly one job": """
        select p.payment_id, count(q.*)
        from (
          select order_id as payment_id from flashsale_data.orders o
          where o.status = 'reserved'
            and not exists (select from flashsale_data.payments p where p.order_id = o.order_id)
          union all
          select payment_id from flashsale_data.payments where status = 'requested') p
        left join pgmq.q_payments q
          on q.message = jsonb_build_object('kind', 'open', 'payment_id', p.payment_id)
        group by p.payment_id having count(q.*) <> 1""",
    "an order without exactly the money that it costs": """
        select o.order_id, sum(p.amount)
        from flashsale_data.orders o
        join flashsale_data.items i using (item_id)
        left join flashsale_data.payments p on p.order_id = o.order_id and p.status = 'succeeded'
        where o.status = 'paid' or p.status = 'succeeded'
        group by o.order_id, o.status, i.price
        having o.status <> 'paid' or count(p.*) <> 1 or sum(p.amount) <> i.price""",
    "times that can't be": """
        select o from flashsale_data.orders o join flashsale_data.items i using (item_id)
        where o.reserved_at < o.created_at
          or o.expires_at <> o.reserved_at + i.hold_seconds * interval '1 second'
          or not (o.paid_at >= o.reserved_at and o.paid_at < o.expires_at)
          or o.ended_at < greatest(o.created_at, o.reserved_at)
          or (o.status = 'expired') <> (o.ended_at >= o.expires_at and o.status <> 'refunded')
          or (o.status in ('paid', 'refunded')) <> (o.paid_at is not null)
          or (o.status = 'refunded') and o.ended_at < o.paid_at
          or (o.status in ('waiting', 'unserved', 'void')) and o.reserved_at is not null""",
}
"""Each finds nothing. Written from DESIGN.md, not from violation.sql."""

FINAL = {"paid", "refunded", "expired", "cancelled", "void"}
WATCHED = [("waiting", "reserved"), ("reserved", "paid"), ("reserved", "expired")]
WATCHED += [("reserved", "settling"), ("settling", "expired"), ("paid", "refunded")]
"""What a storm has to bring about, and recoveries have to see on the way."""


class Commit(NamedTuple):
    """The position of a commit's record in the WAL, and of the record after it."""

    lsn: int
    cut: int


class Wal:
    """The WAL of a stopped cluster, and the positions of the commits in it."""

    def __init__(self, server: EmbeddedPostgres, start: int) -> None:
        self._folder = server.data_dir / "postgres" / "pg_wal"
        self.commits: list[Commit] = []
        dump = subprocess.run(
            [server.bin_dir / "pg_waldump", "--path", self._folder, "--start", _text(start)],
            capture_output=True,
            text=True,
            check=False,  # it always ends with an error: there is no next record
        ).stdout
        committed = None
        for high, low, what in re.findall(r"lsn: (\w+)/(\w+), .*desc: (\w+)", dump):
            lsn = int(high, 16) << 32 | int(low, 16)
            if committed:
                self.commits.append(Commit(committed, lsn))
            committed = lsn if what == "COMMIT" else None

    def feed(self, server: EmbeddedPostgres, start: int, end: int) -> None:
        """Writes WAL from start to end, and nothing behind it, into a cluster's pg_wal."""
        cluster = server.data_dir / "postgres"
        while start < end:
            segment, offset = divmod(start, SEGMENT)
            size = min(end - start, SEGMENT - offset)
            name = f"{1:08X}{segment >> 8:08X}{segment & 0xFF:08X}"
            with (self._folder / name).open("rb") as source:
                source.seek(offset)
                data = source.read(size)
            path = cluster / "pg_wal" / name
            new = not path.exists()
            with path.open("wb" if new else "r+b") as target:
                target.truncate(SEGMENT)
                target.seek(offset)
                target.write(data)
            if new:
                owner = cluster.stat()
                os.chown(path, owner.st_uid, owner.st_gid)
            start += size


def _text(lsn: int) -> str:
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


class CommitJudge:
    """Checks one recovered state after the other, and the changes between them."""

    def __init__(self, answers: Iterable[Told]) -> None:
        self._answers = sorted(answers, key=attrgetter("lsn"))
        self._judged = 0
        self._orders: dict[int, Any] = {}
        self._serving: dict[int, int] = {}
        self.violations: list[str] = []
        self.steps: Counter[tuple[str, str]] = Counter()

    def missed(self) -> list[str]:
        """The kinds of events that were too rare to prove anything. Call it at the end."""
        seen = {order.status for order in self._orders.values()}
        lacking = [f"order became {state}" for state in FINAL - seen]
        lacking += [f"step {a} -> {b}" for a, b in WATCHED if not self.steps[a, b]]
        return [f"the storm exercised too little: no {what}" for what in lacking]

    def look(self, conn: Connection, lsn: int) -> None:
        found = [("violation", row) for row in conn.execute("select * from flashsale.violation")]
        for what, query in RAW.items():
            found += [(what, row) for row in conn.execute(query)]
        orders = {
            order.order_id: order
            for order in conn.execute(
                "select order_id, item_id, ticket, customer_id, status::text, created_at, "
                "reserved_at, expires_at from flashsale_data.orders"
            )
        }
        for old in self._orders.values():
            new = orders.get(old.order_id)
            if new == old:
                continue
            if new is None or not _follows(new, old):
                found.append(("an illegal step", (old, new)))
            elif new.status != old.status:
                self.steps[old.status, new.status] += 1
        serving = dict(
            conn.execute("select item_id, now_serving from flashsale_data.items").fetchall()
        )
        for item_id, before in self._serving.items():
            if serving[item_id] < before:
                found.append(("the line went back", (item_id, before, serving[item_id])))
        known = bisect_right(self._answers, lsn, key=attrgetter("lsn"))
        for answer in self._answers[self._judged : known]:
            if not honours(orders.get(answer.order_id), answer):
                found.append(("acknowledged, and lost", answer))
        self._judged, self._orders, self._serving = known, orders, serving
        self.violations += [f"{_text(lsn)}: {what}: {tuple(row)}" for what, row in found]


def _follows(new: Any, old: Any) -> bool:
    fixed = ["item_id", "ticket", "customer_id", "created_at"]
    fixed += ["reserved_at", "expires_at"] if old.reserved_at else []
    return all(getattr(new, name) == getattr(old, name) for name in fixed) and (
        new.status == old.status or new.status in NEXT.get(old.status, ())
    )


def prove(
    points: int,
    calls: int,
    seed: int,
    crashes: int = 5,
    plant: Callable[[Connection], None] | None = None,
) -> Row:
    """points: how many commits to recover at. crashes: at how many of them to also sell out.

    plant: damages the data as a superuser, in the middle, to check that this is noticed.
    """
    with server_folder() as room:
        server = EmbeddedPostgres(room / "storm", settings=SETTINGS)
        try:
            base, start = _base(server, room)
            storm = SqlSale(server.url(), seed, calls)
            if plant:
                storm.plant = lambda: _planted(server, plant)
            storm.run()
        finally:
            server.stop()
        wal = Wal(server, start)
        chosen = _spread(wal.commits, points)
        judge = CommitJudge(storm.answers)
        began = time.monotonic()
        _walk(copy(base, room / "fed", FED), wal, start, chosen, judge)
        each = (time.monotonic() - began) / len(chosen)
        for number, commit in enumerate(_spread(chosen, crashes)):
            crashed = copy(base, room / f"crash{number}", SETTINGS)
            wal.feed(crashed, start - start % SEGMENT, commit.cut)
            lost = _crash(crashed)
            judge.violations += [f"{_text(commit.cut)}: after a crash here: {it}" for it in lost]
    note = (
        f"of {len(wal.commits):,} commits; {each * 1000:.0f} ms a point; {judge.steps.total():,} "
        f"steps of orders seen; {crashes} crashed there and sold out; seed {seed}"
    )
    return Row(
        "recovery to a commit",
        len(chosen),
        len(storm.answers),
        storm.refused,
        violations=judge.violations + ([] if plant else judge.missed()),
        note=note,
    )


def _planted(server: EmbeddedPostgres, plant: Callable[[Connection], None]) -> None:
    with admin(server) as conn:
        plant(conn)


def _base(server: EmbeddedPostgres, room: Path) -> tuple[EmbeddedPostgres, int]:
    """The state from which all recoveries start: that of a kill right after a checkpoint."""
    server.start()
    migrate(server.url())
    with admin(server) as conn:
        for sku, stock, hold_seconds in ITEMS:
            limits = {"max_per_order": MAX_PER_ORDER, "max_per_customer": MAX_PER_CUSTOMER}
            item(conn, sku, stock=stock, hold_seconds=hold_seconds, **limits)
        conn.execute("checkpoint")
        start = int(value(conn, "select redo_lsn - '0/0' from pg_control_checkpoint()"))
    kill(server)
    base = copy(server, room / "base", SETTINGS)
    for segment in (base.data_dir / "postgres" / "pg_wal").glob("0*"):
        segment.unlink()
    server.start()
    return base, start


def _spread(commits: Sequence[Commit], count: int) -> list[Commit]:
    """Evenly spread commits, including the last one."""
    count = min(count, len(commits))
    return [commits[(n + 1) * len(commits) // count - 1] for n in range(count)]


def _walk(
    server: EmbeddedPostgres, wal: Wal, start: int, commits: Sequence[Commit], judge: CommitJudge
) -> None:
    (server.data_dir / "postgres" / "standby.signal").touch()
    wal.feed(server, start - start % SEGMENT, fed := commits[0].cut)
    with server, admin(server) as conn:
        for commit in commits:
            wal.feed(server, fed, commit.cut)
            fed = commit.cut
            _wait_for(conn, commit)
            judge.look(conn, commit.cut)


def _wait_for(conn: Connection, commit: Commit) -> None:
    """Waits until the standby has replayed the commit, which is the last that it was given."""
    deadline = time.monotonic() + 60
    while True:
        at = value(conn, "select pg_last_wal_replay_lsn() - '0/0'")
        if at is not None and at > commit.lsn:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"recovery stands at {_text(int(at or 0))}, not behind {commit}")
        time.sleep(0.001)


def _crash(server: EmbeddedPostgres) -> list[str]:
    """Starts after a crash and sells every unit of every item. Returns the problems."""
    with server, admin(server) as conn:
        return sell_out(conn)


def proof(full: bool) -> list[Row]:
    seed = int(os.environ.get("PROVE_SEED", time.time()))
    print(f"   every_commit: seed {seed}", flush=True)
    return [prove(2_000 if full else 200, 12_000 if full else 3_000, seed)]
