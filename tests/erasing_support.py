"""Helpers of the tests of erasing: what a worker does, and what is left of somebody."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from support import Connection, call_all, one, pay, reserve, rows, value


def work(db: Connection) -> None:
    """Does all jobs, as a worker whose provider answers everything."""
    while jobs := call_all(db, "take_payment_jobs", 100, 60):
        for job in jobs:
            if job.kind == "refund":
                call_all(db, "payment_refunded", job.job_id, job.tries, job.payment_id)
            elif job.kind == "void":
                call_all(db, "payment_voided", job.job_id, job.tries, job.payment_id)
            else:
                call_all(
                    db, "payment_opened", job.job_id, job.tries, job.payment_id,
                    f"s{job.payment_id}", f"https://pay/{job.payment_id}",
                )  # fmt: skip
    while mails := call_all(db, "take_notifications", 100, 60):
        done = [m.job_id for m in mails], [m.tries for m in mails]
        call_all(db, "finish_notifications", *done)


def buy(db: Connection, item_id: int, customer: str, key: str | None = None) -> Any:
    """A paid order whose jobs have been done."""
    order = reserve(db, item_id, customer, key)
    work(db)
    paid = pay(db, order)
    assert paid.outcome == "paid"
    work(db)
    return paid


def places_of(db: Connection, text: str) -> list[str]:
    """The columns of all our tables and queues in which a text occurs."""
    columns = rows(
        db,
        """
        select format('%I.%I', n.nspname, c.relname) as relation, a.attname as name
        from pg_attribute a
        join pg_class c on c.oid = a.attrelid and c.relkind = 'r'
        join pg_namespace n on n.oid = c.relnamespace
        where (n.nspname = 'flashsale_data' or c.relname ~ '^q_(payments|notifications)$')
          and a.attnum > 0 and not a.attisdropped
        """,
    )
    return [
        f"{column.relation}.{column.name}"
        for column in columns
        if value(
            db,
            f"select exists (select from {column.relation} "
            f'where strpos("{column.name}"::text, %s) > 0)',
            text,
        )
    ]


def still_open(db: Connection, query: str, *args: Any) -> str:
    """What an erasing is refused for."""
    with pytest.raises(psycopg.Error) as error:
        one(db, query, *args)
    assert (error.value.sqlstate, error.value.diag.constraint_name) == ("RV212", "still_open")
    assert error.value.diag.message_detail is not None
    return error.value.diag.message_detail


def columns_named(db: Connection, *names: str) -> set[str]:
    """The tables of ours that have a column with one of these names."""
    return {
        row.relname
        for row in rows(
            db,
            """
            select distinct c.relname
            from pg_attribute a
            join pg_class c on c.oid = a.attrelid and c.relkind = 'r'
            where c.relnamespace = 'flashsale_data'::regnamespace
              and a.attname = any (%s) and not a.attisdropped
            """,
            list(names),
        )
    }
