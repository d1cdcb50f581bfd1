"""Sequences that are behind the rows of their tables.

They are so after a cut-over by logical replication, which carries rows and no sequences. Each next
number would be one that is there already.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql

_ITEMS_AT_ONCE = 1000  # a transaction keeps a lock on each sequence that it looks at

# Tickets that were withdrawn have no orders, and those of a draw get theirs one after the other.
_LINES = """
select
  i.item_id, i.line::text, greatest(o.ticket, w.ticket, d.units) as ticket,
  coalesce(pg_sequence_last_value(i.line), 0) as last
from (
  select item_id, line from flashsale_data.items where item_id > %s order by item_id limit %s
) i
left join lateral (
  select o.ticket
  from flashsale_data.orders o
  where o.order_id between i.item_id::bigint << 32 and (i.item_id::bigint << 32) + 2000000000
  order by o.order_id desc
  limit 1
) o on true
left join lateral (
  select t.last_ticket as ticket
  from flashsale_data.withdrawn_tickets t
  where t.item_id = i.item_id
  order by t.first_ticket desc
  limit 1
) w on true
left join flashsale_data.draws d on d.item_id = i.item_id and d.listed_at is not null
order by i.item_id
"""

# Entries of draws that still take some. Their numbers are above all tickets.
_ENTRIES = """
select s.name, max(o.number)
from (values ('flashsale_data.entry_numbers')) s (name)
cross join flashsale_data.draws d
cross join lateral (
  select (o.order_id & 4294967295)::integer as number
  from flashsale_data.orders o
  where o.order_id between (d.item_id::bigint << 32) + 2000000001
    and (d.item_id::bigint << 32) + 2147483647
  order by o.order_id desc
  limit 1
) o
where d.done_at is null
group by s.name
having max(o.number) > coalesce(pg_sequence_last_value(s.name::regclass), 0)
"""

_IDENTITIES = """
select n.nspname, c.relname, a.attname, s.seqrelid::regclass::text
from pg_attribute a
join pg_class c on c.oid = a.attrelid
join pg_namespace n on n.oid = c.relnamespace
join pg_sequence s
  on s.seqrelid = pg_get_serial_sequence(format('%I.%I', n.nspname, c.relname), a.attname)::regclass
where a.attidentity <> '' and not a.attisdropped
  and (n.nspname = 'flashsale_data' or n.nspname = 'pgmq' and c.relname like 'q\\_%')
order by 1, 2
"""

# In one statement, so that the rows are not younger than the sequence's last number.
_IS_BEHIND = """
select t.highest, t.highest > coalesce(pg_sequence_last_value(s.seqrelid), s.seqstart - 1)
from pg_sequence s cross join (select max({column}) as highest from {table}) t
where s.seqrelid = {sequence}::regclass
"""


def advance(conn: psycopg.Connection[Any]) -> list[str]:
    """Sets sequences that are behind to the last number of their rows. Returns their names."""
    behind = _lines(conn)
    behind += conn.execute(_ENTRIES).fetchall()
    for schema, table, column, sequence in conn.execute(_IDENTITIES).fetchall():
        query = sql.SQL(_IS_BEHIND).format(
            column=sql.Identifier(column),
            table=sql.Identifier(schema, table),
            sequence=sql.Literal(sequence),
        )
        ((highest, is_behind),) = conn.execute(query).fetchall()
        if is_behind:
            behind.append((sequence, highest))
    for sequence, highest in behind:
        advance_to(conn, sequence, highest)
    return [sequence for sequence, _ in behind]


def _lines(conn: psycopg.Connection[Any]) -> list[tuple[str, int]]:
    """The items' sequences that are behind the tickets that rows tell of, and the last of these."""
    behind: list[tuple[str, int]] = []
    item_id = 0
    while items := conn.execute(_LINES, [item_id, _ITEMS_AT_ONCE]).fetchall():
        item_id = items[-1][0]
        behind += [(line, ticket) for _, line, ticket, last in items if (ticket or 0) > last]
    return behind


def advance_to(conn: psycopg.Connection[Any], sequence: str, highest: int) -> None:
    """Never sets a sequence back: whoever wants a number meanwhile waits for this transaction."""
    with conn.transaction():
        conn.execute(f"alter sequence {sequence} no cycle")  # it changes nothing, but locks it
        conn.execute(
            "select setval(%(s)s, greatest(%(n)s, pg_sequence_last_value(%(s)s)))",
            {"s": sequence, "n": highest},
        )
