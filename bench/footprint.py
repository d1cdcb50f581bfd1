"""What a paid order leaves behind: heap, indexes and WAL, and what its queues' indexes keep.

    python -m bench.footprint [ORDERS]

Every order has an Idempotency-Key, an id of a customer and a checkout URL of usual lengths, one
payment and two e-mails. Nothing is batched, which takes the most WAL.
"""

from __future__ import annotations

import sys

from flashsale.database.migrate import migrate
from flashsale.testing import Connection, connect, item, postgres_server, rows, value

ROUND = 100

SIZES = """
select
  c.relname as name,
  pg_table_size(c.oid) as heap,
  pg_indexes_size(c.oid) as indexes,
  n.nspname = 'pgmq' as is_queue
from pg_class c
join pg_namespace n on n.oid = c.relnamespace
where n.nspname in ('flashsale_data', 'pgmq') and c.relkind = 'r' and c.relname !~ 'yoyo'
order by pg_total_relation_size(c.oid) desc
"""


def sell(conn: Connection, shoe: int, first: int) -> None:
    """A round of orders from their requests to their last e-mails."""
    for n in range(first, first + ROUND):
        conn.execute(
            "select flashsale.reserve(%s, %s, %s)",
            [shoe, f"customer-{n:012}", f"6f1c3f6e-6a5b-4a53-9a3e-{n:012}"],
        )
    for job in rows(conn, "select * from flashsale.take_payment_jobs(%s, 30)", ROUND):
        session = f"cs_{job.payment_id:032}"
        conn.execute(
            "select flashsale.payment_opened(%s, %s, %s, %s, %s)",
            [job.job_id, job.tries, job.payment_id, session, f"https://pay.example/{session}"],
        )
        conn.execute(
            "select flashsale.record_payment_event(%s, 'payment.succeeded', %s, %s, %s, %s, now())",
            [f"evt_{job.payment_id:032}", session, str(job.payment_id), job.amount, job.currency],
        )
    while mails := rows(conn, "select * from flashsale.take_notifications(%s, 30)", ROUND):
        conn.execute(
            "select flashsale.finish_notifications(%s, %s)",
            [[mail.job_id for mail in mails], [mail.tries for mail in mails]],
        )
    conn.execute("select flashsale.sweep()")


def main(orders: int) -> None:
    with postgres_server() as server:
        migrate(server.url())
        with connect(server.url()) as conn, connect(server.url(user="postgres")) as admin:
            shoe = item(conn, stock=orders + ROUND)
            sell(conn, shoe, 0)  # so that what every table has from its first row does not count
            admin.execute("vacuum analyze")
            before = {row.name: row for row in rows(admin, SIZES)}
            wal = value(admin, "select pg_current_wal_insert_lsn()")
            for first in range(ROUND, ROUND + orders, ROUND):
                sell(conn, shoe, first)
            written = value(admin, "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %s)", wal)
            assert value(admin, "select paid from flashsale.item_status") == orders + ROUND
            admin.execute("vacuum analyze")
            after = rows(admin, SIZES)
            print(f"bytes per order, of {orders:,} orders{'heap':>22}{'indexes':>10}")
            kept = [row for row in after if not row.is_queue]
            total = [0.0, 0.0]
            for row in kept:
                heap = (row.heap - before[row.name].heap) / orders
                indexes = (row.indexes - before[row.name].indexes) / orders
                total = [total[0] + heap, total[1] + indexes]
                if heap + indexes >= 1:
                    print(f"{row.name:50}{heap:10,.0f}{indexes:10,.0f}")
            print(f"{'all that is kept':50}{total[0]:10,.0f}{total[1]:10,.0f}")
            print(f"{'WAL':50}{float(written) / orders:10,.0f}")
            print(f"\n{'bytes in all, of queues that are empty':50}{'heap':>10}{'indexes':>10}")
            for row in after:
                if row.is_queue and row.name.startswith("q_"):
                    print(f"{row.name:50}{row.heap:10,}{row.indexes:10,}")
                    admin.execute(f"reindex table pgmq.{row.name}")
            for row in rows(admin, SIZES):
                if row.is_queue and row.name.startswith("q_"):
                    print(f"{row.name + ', rebuilt':50}{row.heap:10,}{row.indexes:10,}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 20_000)
