"""Breaks sql/ on purpose, one rule at a time, and shows which test notices.

    python -m prove.mutants [part of a name ...]

Each mutant is a copy of sql/ with one rule removed. The tests run against it, those that are most
likely to notice first, until one fails: the mutant is killed. The exit status is 1 if a mutant
survives, or if the tests fail with the unchanged sql/.
FLASHSALE_SQL_DIR names another sql/ to start from.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from flashsale.dev.postgres import EmbeddedPostgres
from flashsale.testing.servers import FAST, postgres_server

ROOT = Path(__file__).parent.parent
SQL = Path(os.environ.get("FLASHSALE_SQL_DIR", ROOT / "sql"))
SUITE = ["found", "reserve", "cancel", "expire", "promote", "pay", "items", "jobs", "model"]
SUITE += ["races", "permutations", "sweep", "violation"]
AT_ONCE = 2


@dataclass(frozen=True)
class Mutant:
    """In sql/`file`, `old` becomes `new`. The tests of `first` are most likely to notice."""

    name: str
    file: str
    old: str
    new: str
    first: str


@dataclass(frozen=True)
class Fate:
    """The fate of a mutant: the test that noticed it; None: it survived."""

    mutant: Mutant
    killer: str | None
    seconds: float


PAY_LOCKS = """\
  select o.* into v_order
  from flashsale_data.orders o
  where o.order_id = coalesce(
    (select p.order_id from flashsale_data.payments p where p.payment_id = v_payment_id),
    v_payment_id)
  for update;
  perform flashsale.first_payments(array[v_order.order_id]);
  select p.* into v_payment
  from flashsale_data.payments p
  where p.payment_id = v_payment_id and p.order_id = v_order.order_id
  for update;
"""

GRANT_LOCKS = """\
  select array_agg(e.order_id) into v_entitled
  from (
    select o.order_id
    from flashsale_data.orders o
    where o.order_id between
        flashsale.order_id_of(p_item.item_id, 0)
        and flashsale.order_id_of(p_item.item_id, p_item.now_serving)
      and o.status = 'waiting'
    order by o.order_id
    limit p_limit
    for update skip locked
  ) e;
"""

MUTANTS = [
    Mutant(
        "pay: the clock is the start of the transaction",
        "pay",
        "  v_now := flashsale.clock();",
        "  v_now := now();",
        "pay",
    ),
    Mutant(
        "pay: the clock is read before the lock",
        "pay",
        PAY_LOCKS + "  v_now := flashsale.clock();\n",
        "  v_now := flashsale.clock();\n" + PAY_LOCKS,
        "pay",
    ),
    Mutant(
        "pay: any amount will do",
        "pay",
        "when p_amount <> v_payment.amount or p_currency <> v_payment.currency then",
        "when false then",
        "pay",
    ),
    Mutant(
        "pay: money of an older attempt counts",
        "pay",
        "and p.payment_id > v_payment.payment_id)",
        "and false)",
        "pay",
    ),
    Mutant(
        "pay: money at the deadline is in time",
        "pay",
        "v_order.status <> 'reserved' or v_order.expires_at <= v_now then 'late'",
        "v_order.status <> 'reserved' or v_order.expires_at < v_now then 'late'",
        "pay",
    ),
    Mutant(
        "pay: no refund is asked for",
        "pay",
        "  perform flashsale.enqueue_payment_jobs('refund', array[p_payment.payment_id]);\n",
        "",
        "pay",
    ),
    Mutant(
        "pay: the payment that an event names decides, not its session",
        "pay",
        "(select p.payment_id from flashsale_data.payments p where p.session_id = p_session_id)",
        "null::bigint",
        "pay",
    ),
    Mutant(
        "pay: the sale is not counted",
        "pay",
        "    select p.item_id, 1, 0 from paid p",
        "    select p.item_id, 1, 0 from paid p where false",
        "pay",
    ),
    Mutant(
        "pay: the first attempt has no row",
        "pay",
        "  perform flashsale.first_payments(array[v_order.order_id]);\n",
        "",
        "pay",
    ),
    Mutant(
        "first payments: although late money took it along",
        "first_payments",
        "    and not exists (select from flashsale_data.payments p where p.order_id = o.order_id)\n"
        "  order by",
        "  order by",
        "pay",
    ),
    Mutant(
        "first payments: of who waits",
        "first_payments",
        "    and o.reserved_at is not null\n    and not exists",
        "    and not exists",
        "pay",
    ),
    Mutant(
        "keep_if_free: although somebody waits",
        "pay",
        "        and o.status = 'waiting')",
        "        and false)",
        "found",
    ),
    Mutant(
        "keep_if_free: although the item is paused",
        "pay",
        "v_item.closes_at, v_item.paused, p_now)",
        "v_item.closes_at, false, p_now)",
        "pay",
    ),
    Mutant(
        "stray money: refunded each time it is heard of",
        "pay",
        "array[v_payment_id])\n  where v_payment_id is not null;",
        "array[v_payment_id]);",
        "pay",
    ),
    Mutant(
        "an event has its effect each time it comes",
        "record_payment_event",
        "  if not found then\n    return 'duplicate';",
        "  if false then\n    return 'duplicate';",
        "pay",
    ),
    Mutant(
        "a failure ends the payment of another session",
        "end_payment",
        "    and coalesce(p.session_id, p_session_id) = p_session_id\n",
        "",
        "pay",
    ),
    Mutant(
        "a refund is settled twice",
        "settle_refund",
        "    and p.status = 'refund_due'\n  returning",
        "    and p.status in ('refund_due', 'refunded')\n  returning",
        "pay",
    ),
    Mutant(
        "cancel: paid orders too",
        "cancel",
        "(o.status = 'waiting' or",
        "(o.status in ('waiting', 'paid') or",
        "cancel",
    ),
    Mutant(
        "cancel: overdue holds too",
        "cancel",
        "o.status = 'reserved' and o.expires_at > v_now)",
        "o.status = 'reserved')",
        "cancel",
    ),
    Mutant(
        "cancel: the payment is not voided",
        "cancel",
        "      flashsale.void_payments_of(v_cancelled), flashsale",
        "      flashsale",
        "cancel",
    ),
    Mutant(
        "cancel: who leaves the line is not counted",
        "cancel",
        "where c.reserved_at is null",
        "where false",
        "cancel",
    ),
    Mutant(
        "expire: whatever state the order is in",
        "expire",
        "      and o.status = 'reserved'\n      and o.expires_at <= p_now",
        "      and o.expires_at <= p_now",
        "found",
    ),
    Mutant(
        "expire: not at the deadline, but after it",
        "expire",
        "    where o.status = 'reserved' and o.expires_at <= v_now",
        "    where o.status = 'reserved' and o.expires_at < v_now",
        "expire",
    ),
    Mutant(
        "expire: the payment is not voided",
        "expire",
        "  perform flashsale.void_payments_of(v_expired), flashsale",
        "  perform flashsale",
        "jobs model",
    ),
    Mutant(
        "expire: without a limit",
        "expire",
        "    limit p_limit\n",
        "",
        "expire",
    ),
    Mutant(
        "expire: waits for an order that is being paid",
        "expire",
        "    limit p_limit\n    for update skip locked",
        "    limit p_limit\n    for update",
        "found",
    ),
    Mutant(
        "sweep: waits for an order that is being paid",
        "expire",
        "o.status = 'reserved'\n    for update skip locked",
        "o.status = 'reserved'\n    for update",
        "sweep",
    ),
    Mutant(
        "reserve: a hold at its deadline still runs",
        "reserve",
        "not (o.status = 'reserved' and o.expires_at <= p_now)\n",
        "not (o.status = 'reserved' and o.expires_at < p_now)\n",
        "reserve",
    ),
    Mutant(
        "reserve: a hold that is over is the order that one has",
        "reserve",
        "      when p_idempotency_key is null and not (o.status = 'reserved' and o.expires_at <= "
        "p_now)\n        then 'existing'\n",
        "      when p_idempotency_key is null then 'existing'\n",
        "reserve",
    ),
    Mutant(
        "reserve_many: a hold at its deadline still runs",
        "reserve_many",
        "    where o.status = 'reserved' and o.expires_at <= p_now\n",
        "    where o.status = 'reserved' and o.expires_at < p_now\n",
        "reserve",
    ),
    Mutant(
        "reserve: the line is one longer than max_waiting",
        "reserve",
        "    else p_now_serving + p_gaps + p_max_waiting\n",
        "    else p_now_serving + p_gaps + p_max_waiting + 1\n",
        "reserve model",
    ),
    Mutant(
        "reserve: a refusal takes a ticket",
        "reserve",
        ">= t.ticket_limit then 'sold_out'",
        "> t.ticket_limit then 'sold_out'",
        "reserve",
    ),
    Mutant(
        "reserve: one unit too many",
        "reserve",
        "case when v_ticket <= v_now_serving then v_now",
        "case when v_ticket <= v_now_serving + 1 then v_now",
        "reserve",
    ),
    Mutant(
        "reserve_many: one unit too many",
        "reserve_many",
        "case when t.ticket <= t.now_serving then p_now",
        "case when t.ticket <= t.now_serving + 1 then p_now",
        "reserve",
    ),
    Mutant(
        "reserve: the key is not recorded",
        "reserve",
        "    if p_idempotency_key is not null then\n      insert",
        "    if false then\n      insert",
        "reserve",
    ),
    Mutant(
        "reserve: a key that a duplicate has claimed is ignored",
        "reserve",
        "      if not found then -- a duplicate of this request came first\n",
        "      if false then\n",
        "found",
    ),
    Mutant(
        "reserve: the key of an order that a duplicate prevented stays",
        "reserve",
        "  perform flashsale.release_keys(\n    array[p_item_id], array[p_customer_id], "
        "array[p_idempotency_key], array[null]);\n",
        "",
        "found races permutations",
    ),
    Mutant(
        "reserve_many: the key of an order that a duplicate prevented stays",
        "reserve_many",
        "    perform flashsale.release_keys(p_item_ids, p_customer_ids, p_idempotency_keys, "
        "v_outcomes);\n",
        "",
        "found races permutations",
    ),
    Mutant(
        "reserve: a hold brings no job",
        "reserve",
        "      insert into pgmq.q_payments (vt, message) -- as enqueue_payment_jobs does\n"
        "      values (clock_timestamp(), jsonb_build_object('kind', 'open', 'payment_id', "
        "v_order_id));\n",
        "",
        "jobs",
    ),
    Mutant(
        "reserve_many: inserts in order of arrival",
        "reserve_many",
        "    order by t.item_id, t.customer_id\n    on conflict (item_id",
        "    order by t.new_id\n    on conflict (item_id",
        "found",
    ),
    Mutant(
        "reserve_many: tickets are taken while a hold is still to be ended",
        "reserve_many",
        " and not exists (select from overdue)\n",
        "\n",
        "reserve",
    ),
    Mutant(
        "reserve_many: a customer who asks twice takes two tickets",
        "reserve_many",
        "        and 1 = row_number() over (",
        "        and 0 < row_number() over (",
        "found",
    ),
    Mutant(
        "reserve_many: an order of an earlier round is told as if of the last",
        "reserve_many",
        "    v_placed_at := case when v_round = 1 then v_now end;\n",
        "    v_placed_at := v_now;\n",
        "reserve",
    ),
    Mutant(
        "shut_by: sells while paused",
        "shut_by",
        "    when p_paused then 'paused'\n",
        "",
        "reserve",
    ),
    Mutant(
        "shut_by: sells after the close",
        "shut_by",
        "    when p_closes_at <= p_now then 'closed'\n    when p_paused then 'paused'\n    when",
        "    when p_paused then 'paused'\n    when",
        "reserve",
    ),
    Mutant(
        "reserve_many: a new key is not recorded with the order that one has",
        "reserve_many",
        "t.idempotency_key is not null and t.order_id is not null\n",
        "t.idempotency_key is not null and t.new_id is not null\n",
        "reserve",
    ),
    Mutant(
        "reserve_many: another key of the same order counts as this one",
        "reserve_many",
        "(t.known_id, t.idempotency_key) in (\n          select c.order_id, c.idempotency_key "
        "from claimed c)",
        "t.known_id in (select c.order_id from claimed c)",
        "found",
    ),
    Mutant(
        "promote: without the item's lock",
        "promote",
        "  for no key update skip locked;\n  if not found then\n    return;",
        "  ;\n  if not found then\n    return;",
        "found",
    ),
    Mutant(
        "promote: recycles twice",
        "promote",
        "      set recycled = true\n",
        "      set recycled = false\n",
        "promote",
    ),
    Mutant(
        "promote: grants the last first",
        "promote",
        "    order by o.order_id\n    limit p_limit\n    for update skip locked\n  ) e;",
        "    order by o.order_id desc\n    limit p_limit\n    for update skip locked\n  ) e;",
        "found",
    ),
    Mutant(
        "promote: grants beyond now_serving",
        "promote",
        "        and flashsale.order_id_of(p_item.item_id, p_item.now_serving)\n"
        "      and o.status = 'waiting'",
        "        and flashsale.order_id_of(p_item.item_id, p_item.now_serving + 1)\n"
        "      and o.status = 'waiting'",
        "promote",
    ),
    Mutant(
        "promote: the hold runs since the customer asked",
        "promote",
        "      expires_at = v_now + p_item.hold_seconds",
        "      expires_at = o.created_at + p_item.hold_seconds",
        "expire",
    ),
    Mutant(
        "promote: the clock is from before the locks",
        "promote",
        GRANT_LOCKS + "  v_now := flashsale.clock();",
        "  v_now := flashsale.clock();\n" + GRANT_LOCKS,
        "promote",
    ),
    Mutant(
        "promote: grants though the sale has closed meanwhile",
        "promote",
        "      and flashsale.shut_by(null, p_item.closes_at, false, v_now) is null\n",
        "",
        "promote",
    ),
    Mutant(
        "promote: serves a paused line",
        "promote",
        "v_item.closes_at, v_item.paused, v_now)",
        "v_item.closes_at, false, v_now)",
        "promote",
    ),
    Mutant(
        "promote: ends the line before the close",
        "promote",
        "  if v_shut_by = 'closed' then",
        "  if v_item.closes_at is not null then",
        "found",
    ),
    Mutant(
        "promote: does not see how far it has moved the line",
        "promote",
        "    now_serving := v_now_serving;\n",
        "",
        "promote",
    ),
    Mutant(
        "promote: a debt swallows no forfeits",
        "promote",
        "      stock = i.stock - least(i.withdrawing, c.forfeits),\n",
        "",
        "items",
    ),
    Mutant(
        "promote: the gaps stay",
        "promote",
        "      gaps_in_line = i.gaps_in_line - c.gaps\n",
        "      gaps_in_line = i.gaps_in_line\n",
        "promote",
    ),
    Mutant(
        "fill: while somebody may still come",
        "fill",
        "  if v_item.noted_xid <= pg_snapshot_xmin(v_snapshot) then",
        "  if v_item.noted_xid is not null then",
        "promote",
    ),
    Mutant(
        "fill: notes a ticket though it has an id already",
        "fill",
        "  if pg_current_xact_id_if_assigned() is null then\n    v_last_ticket",
        "  if true then\n    v_last_ticket",
        "found sweep",
    ),
    Mutant(
        "sweep: notes tickets though it has an id already",
        "sweep",
        "case when pg_current_xact_id_if_assigned() is null then n.last_ticket end",
        "n.last_ticket",
        "sweep",
    ),
    Mutant(
        "fill: what another cluster noted counts",
        "fill",
        "      or v_item.noted_xid >= pg_snapshot_xmax(v_snapshot) -- of another cluster\n",
        "",
        "sweep",
    ),
    Mutant(
        "sweep: what another cluster noted is waited for",
        "sweep",
        "      and n.noted_xid < pg_snapshot_xmax(pg_current_snapshot())) is not true",
        "      ) is not true",
        "sweep",
    ),
    Mutant(
        "fill: the limit is one of tickets",
        "fill",
        "v_item.settled::bigint + v_tickets_per_visit);",
        "v_item.settled::bigint + p_limit);",
        "sweep",
    ),
    Mutant(
        "fill: never says that there is more",
        "fill",
        "    more := v_item.settled < v_item.noted_ticket;",
        "    more := false;",
        "sweep",
    ),
    Mutant(
        "fill: up to the last ticket, not the noted one",
        "fill",
        "    v_up_to := least(v_item.noted_ticket, ",
        "    v_up_to := least(pg_sequence_last_value(v_item.line), ",
        "found",
    ),
    Mutant(
        "sweep: finds no holes",
        "sweep",
        "    select f.item_id, f.last_ticket from flashsale.items_to_fill(p_runner) f\n"
        "    union all\n",
        "",
        "promote",
    ),
    Mutant(
        "sweep: looks for holes in the first lines only",
        "sweep",
        "      when p_sweeps = 0 then s.last_examined_item_id\n",
        "      when p_sweeps >= 0 then 0\n",
        "promote",
    ),
    Mutant(
        "sweep: skips every other waiting item",
        "sweep",
        "        and o.order_id >= flashsale.order_id_of(flashsale.item_of(f.order_id) + 1, 0)\n"
        "      order by o.order_id limit 1)\n    from first_waiting f",
        "        and o.order_id >= flashsale.order_id_of(flashsale.item_of(f.order_id) + 2, 0)\n"
        "      order by o.order_id limit 1)\n    from first_waiting f",
        "sweep",
    ),
    Mutant(
        "sweep: skips every other item with forfeits",
        "sweep",
        "        and o.order_id >= flashsale.order_id_of(flashsale.item_of(f.order_id) + 1, 0)\n"
        "      order by o.order_id limit 1)\n    from first_unrecycled f",
        "        and o.order_id >= flashsale.order_id_of(flashsale.item_of(f.order_id) + 2, 0)\n"
        "      order by o.order_id limit 1)\n    from first_unrecycled f",
        "sweep",
    ),
    Mutant(
        "sweep: folds without the item's lock",
        "sweep",
        "    where i.item_id = p_item_id\n    for no key update skip locked\n",
        "    where i.item_id = p_item_id\n",
        "sweep",
    ),
    Mutant(
        "sweep: two sweeps of one name wait for each other",
        "sweep",
        "    where l.runner = p_runner\n    limit 1\n    for no key update skip locked);",
        "    where l.runner = p_runner\n    limit 1);",
        "sweep",
    ),
    Mutant(
        "sweep: waits for one that forgets the same runner",
        "sweep",
        "interval '1 day'\n      for update skip locked));",
        "interval '1 day'));",
        "sweep",
    ),
    Mutant(
        "sweep: waits for a leased job after the clock went back",
        "sweep",
        "q_payments p where p.vt > clock_timestamp()\n      for update skip locked",
        "q_payments p where p.vt > clock_timestamp()",
        "sweep",
    ),
    Mutant(
        "sweep: the first item takes the whole limit",
        "sweep",
        "greatest(1, p_limit / greatest(1, cardinality(v_due)));",
        "p_limit;",
        "sweep",
    ),
    Mutant(
        "sweep: tries a failing item again at once",
        "sweep",
        "  where f.retry_at > p_now and f.failed_at <= p_now",
        "  where false and f.retry_at > p_now",
        "sweep",
    ),
    Mutant(
        "sweep: the holds of a failing item hide others",
        "sweep",
        "        and o.item_id <> all (v_failing)\n",
        "",
        "sweep",
    ),
    Mutant(
        "sweep_item: an error goes on to the other items",
        "sweep_item",
        "    when others then\n      error := format('%s: %s', sqlstate, sqlerrm);",
        "    when others then\n      raise;",
        "sweep",
    ),
    Mutant(
        "sweep_item: a failure is never forgotten",
        "sweep_item",
        "    perform flashsale.forget_failures(p_item.item_id);\n",
        "",
        "sweep",
    ),
    Mutant(
        "sweep_item: all overdue holds at once",
        "sweep_item",
        "p_item.overdue_ids[1:p_limit]",
        "p_item.overdue_ids",
        "sweep",
    ),
    Mutant(
        "sweep_failed: two failures of one item wait for each other",
        "sweep_failed",
        "    limit 1\n    for no key update skip locked);",
        "    limit 1);",
        "sweep",
    ),
    Mutant(
        "cron: all items in one transaction",
        "cron",
        "v_item.overdue_ids, v_limit);\n    commit;\n",
        "v_item.overdue_ids, v_limit);\n",
        "sweep",
    ),
    Mutant(
        "promote: never says that there is more",
        "promote",
        "  more := greatest(unserved, recycled, promoted) >= p_limit;",
        "  more := false;",
        "sweep",
    ),
    Mutant(
        "reserve: the ticket is taken before the transaction id",
        "reserve",
        "case when pg_current_xact_id() is not null then nextval(v_line) end;",
        "nextval(v_line);",
        "sweep",
    ),
    Mutant(
        "reserve_many: the ticket is taken before the transaction id",
        "reserve_many",
        "case when n.is_next and pg_current_xact_id() is not null\n",
        "case when n.is_next\n",
        "sweep",
    ),
    Mutant(
        "reserve_many: overdue holds without their lock",
        "reserve_many",
        "  order by o.item_id, o.customer_id\n  for update;",
        "  order by o.item_id, o.customer_id;",
        "sweep",
    ),
    Mutant(
        "filling_blocker: sees no prepared transactions",
        "views",
        "    from pg_prepared_xacts p\n",
        "    from pg_prepared_xacts p where false\n",
        "sweep",
    ),
    Mutant(
        "sweep: counts a tally each time",
        "sweep",
        "    delete from flashsale_data.tallies t\n    using locked l\n"
        "    where t.item_id = l.item_id\n    returning t.item_id, t.paid, t.gaps_in_line\n",
        "    select t.item_id, t.paid, t.gaps_in_line from flashsale_data.tallies t\n"
        "    join locked l on t.item_id = l.item_id\n",
        "pay",
    ),
    Mutant(
        "sweep: a line that nobody may serve any more is left alone",
        "sweep",
        "  where s.shut_by = 'closed'\n    or s.shut_by is null and f.order_id",
        "  where s.shut_by is null and f.order_id",
        "promote",
    ),
    Mutant(
        "violation: blind for: oversold",
        "violation",
        "where c.units > i.stock\n",
        "where false and c.units > i.stock\n",
        "violation",
    ),
    Mutant(
        "violation: blind for: served out of turn",
        "violation",
        "where (o.status in ('reserved', 'paid') or o.recycled) and o.ticket > i.now_serving\n",
        "where false and (o.status in ('reserved', 'paid') or o.recycled) and o.ticket "
        "> i.now_serving\n",
        "violation",
    ),
    Mutant(
        "violation: blind for: forfeits are counted once",
        "violation",
        "where coalesce(c.recycled, 0) <> i.forfeited\n",
        "where false and coalesce(c.recycled, 0) <> i.forfeited\n",
        "violation",
    ),
    Mutant(
        "violation: blind for: every settled ticket has its order",
        "violation",
        "where coalesce(c.settled, 0) <> i.settled\n",
        "where false and coalesce(c.settled, 0) <> i.settled\n",
        "violation",
    ),
    Mutant(
        "violation: blind for: what is noted is of this cluster",
        "violation",
        "where i.noted_xid >= pg_snapshot_xmax(pg_current_snapshot())\n",
        "where false and i.noted_xid >= pg_snapshot_xmax(pg_current_snapshot())\n",
        "violation",
    ),
    Mutant(
        "violation: blind for: filling keeps up",
        "violation",
        "where i.settled < i.noted_ticket\n",
        "where false and i.settled < i.noted_ticket\n",
        "violation",
    ),
    Mutant(
        "violation: blind for: every ticket is of its line",
        "violation",
        "  and o.ticket > coalesce(flashsale.issued_tickets(o.item_id), 0)\n",
        "  and false\n  and o.ticket > coalesce(flashsale.issued_tickets(o.item_id), 0)\n",
        "violation",
    ),
    Mutant(
        "violation: blind for: paid means paid for",
        "violation",
        "where o.status = 'paid'\n",
        "where false and o.status = 'paid'\n",
        "violation",
    ),
    Mutant(
        "violation: blind for: money buys an order or goes back",
        "violation",
        "where p.status = 'succeeded' and o.status <> 'paid'\n",
        "where false and p.status = 'succeeded' and o.status <> 'paid'\n",
        "violation",
    ),
    Mutant(
        "violation: blind for: a success has its session",
        "violation",
        "where p.status = 'succeeded' and p.session_id is null\n",
        "where false and p.status = 'succeeded' and p.session_id is null\n",
        "violation",
    ),
    Mutant(
        "violation: blind for: a payment has its order",
        "violation",
        "where p.order_id is not null\n",
        "where false and p.order_id is not null\n",
        "violation",
    ),
    Mutant(
        "violation: blind for: an open payment of an ended order",
        "violation",
        "  where a.status = 'open' and o.ended_at is not null\n",
        "  where false and a.status = 'open' and o.ended_at is not null\n",
        "violation",
    ),
    Mutant(
        "violation: blind for: requests and refunds that are due",
        "violation",
        "  where a.status in ('requested', 'refund_due')\n",
        "  where false and a.status in ('requested', 'refund_due')\n",
        "violation",
    ),
    Mutant(
        "violation: blind for: a hold without a payment",
        "violation",
        "  where o.status = 'reserved'\n",
        "  where false and o.status = 'reserved'\n",
        "violation",
    ),
    Mutant(
        "violation: blind for: a key leads to its order",
        "violation",
        "where not exists (\n  select from flashsale_data.orders o\n  where o.order_id "
        "= k.order_id and",
        "where false and not exists (\n  select from flashsale_data.orders o\n  where "
        "o.order_id = k.order_id and",
        "violation",
    ),
    Mutant(
        "violation: blind for: counters add up: paid",
        "violation",
        "where i.paid + coalesce(t.paid, 0) <> coalesce(c.paid, 0)\n  or i.gaps",
        "where false\n  or i.gaps",
        "violation",
    ),
    Mutant(
        "violation: blind for: counters add up: gaps",
        "violation",
        "  or i.gaps_in_line + coalesce(t.gaps_in_line, 0) <> coalesce(c.gaps, 0)\n",
        "",
        "violation",
    ),
    Mutant(
        "violation: blind for: an order makes sense: ticket 0",
        "violation",
        "  or o.ticket < 1\n",
        "",
        "violation",
    ),
    Mutant(
        "violation: blind for: an order makes sense: customers of voids",
        "violation",
        "  or (o.customer_id is null) <> (o.status = 'void')\n",
        "",
        "violation",
    ),
    Mutant(
        "violation: blind for: an order makes sense: half a hold",
        "violation",
        "  or (o.reserved_at is null) <> (o.expires_at is null)\n",
        "",
        "violation",
    ),
    Mutant(
        "violation: blind for: an order makes sense: negative holds",
        "violation",
        "  or o.expires_at <= o.reserved_at\n",
        "",
        "violation",
    ),
    Mutant(
        "violation: blind for: an order makes sense: no hold",
        "violation",
        "  or o.expires_at is null and o.status in ('reserved', 'paid', 'expired')\n",
        "",
        "violation",
    ),
    Mutant(
        "violation: blind for: an order makes sense: early expiry",
        "violation",
        "  or o.status = 'expired' and o.ended_at < o.expires_at\n",
        "",
        "violation",
    ),
    Mutant(
        "violation: blind for: an order makes sense: early recycling",
        "violation",
        "  or o.recycled and o.ended_at is null\n",
        "",
        "violation",
    ),
    Mutant(
        "withdraw: lowers now_serving",
        "withdraw",
        "    forfeited = i.forfeited + c.units,\n",
        "",
        "items",
    ),
    Mutant(
        "withdraw: what was paid a moment ago too",
        "withdraw",
        " - v_item.paid - coalesce(sum(t.paid), 0)",
        " - v_item.paid",
        "items",
    ),
    Mutant(
        "withdraw: the rest is forgotten",
        "withdraw",
        "    withdrawing = i.withdrawing + p_units - c.units,\n",
        "",
        "items",
    ),
    Mutant(
        "restock: leaves the debt",
        "restock",
        "  v_kept integer := least(p_units, v_item.withdrawing);",
        "  v_kept integer := 0;",
        "items",
    ),
    Mutant(
        "order_status: an overdue hold is reserved",
        "order_status",
        "    when o.status = 'reserved' and o.expires_at <= flashsale.clock() then 'expired'",
        "    when false then 'expired'",
        "expire",
    ),
    Mutant(
        "jobs: acknowledged whoever has the lease",
        "lease",
        "  delete from pgmq.q_payments q where q.msg_id = p_job_id and q.read_ct = p_tries;",
        "  delete from pgmq.q_payments q where q.msg_id = p_job_id;",
        "jobs",
    ),
    Mutant(
        "jobs: put off whoever has the lease",
        "retry_job",
        "      update pgmq.q_payments q set vt = v_at\n"
        "      where p_queue = 'payments' and q.msg_id = p_job_id and q.read_ct = p_tries",
        "      update pgmq.q_payments q set vt = v_at\n"
        "      where p_queue = 'payments' and q.msg_id = p_job_id",
        "jobs",
    ),
    Mutant(
        "jobs: tried again without backoff",
        "retry_job",
        "    + least(300, 0.25 * 2 ^ p_tries) * (0.75 + random() / 2) * interval '1 second';",
        "    + interval '0.1 second';",
        "jobs",
    ),
    Mutant(
        "jobs: a job that failed too often is thrown away",
        "retry_job",
        "  from (select * from dead union all select * from also_dead) d\n",
        "  from (select * from dead union all select * from also_dead) d where false\n",
        "jobs",
    ),
    Mutant(
        "jobs: poison is thrown away",
        "take_payment_jobs",
        "      from job j\n      where j.is_hopeless\n",
        "      from job j\n      where false\n",
        "jobs",
    ),
    Mutant(
        "jobs: a session opened too late is not voided",
        "payment_opened",
        "    perform flashsale.enqueue_payment_jobs('void', array[p_payment_id]);\n",
        "",
        "jobs",
    ),
]
"""Left out, because nothing can tell them from the original: the state named again in an update of
rows that the same statement has locked and checked (`passed`, `entitled`, `leaving`); the customer
named in the update of cancel, whose order_status raises for another customer's order and so undoes
it."""


def misfit(mutant: Mutant) -> str | None:
    """Why the mutant can't be made from this sql/; None if it can."""
    times = (SQL / f"{mutant.file}.sql").read_text().count(mutant.old)
    return (
        None if times == 1 else f"{mutant.name}: {mutant.file}.sql has it {times} times, not once"
    )


def broken(mutant: Mutant, folder: Path) -> Path:
    """A copy of sql/ with the mutant's change."""
    copy = Path(shutil.copytree(SQL, folder / "sql"))
    source = copy / f"{mutant.file}.sql"
    source.write_text(source.read_text().replace(mutant.old, mutant.new))
    return copy


def first_failure(sql: Path, names: Iterable[str], server: EmbeddedPostgres) -> str | None:
    """The first of these tests that fails with this sql/."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=no"]
    command += [f"--server={server.data_dir}:{server.port}", "--timeout=60"]
    command += [*(f"tests/{file_of(name)}" for name in names)]
    environ = os.environ | {"FLASHSALE_SQL_DIR": str(sql)}
    done = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return None
    found = re.search(r"^(?:FAILED|ERROR) tests/(\S+)", done.stdout, re.MULTILINE)
    return found[1] if found else f"pytest itself: {(done.stdout + done.stderr)[-300:]}"


def file_of(name: str) -> str:
    return "test_mutants_found.py" if name == "found" else f"test_{name}.py"


def fate_of(mutant: Mutant, server: EmbeddedPostgres) -> Fate:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="flashsale-mutant-") as folder:
        sql = broken(mutant, Path(folder))
        likely = mutant.first.split()
        killer = first_failure(sql, likely, server)
        if killer is None:
            killer = first_failure(sql, [name for name in SUITE if name not in likely], server)
    return Fate(mutant, killer, time.monotonic() - started)


def judge(chosen: Sequence[Mutant]) -> tuple[list[Fate], list[str]]:
    """The fate of each mutant, and the problems of the proof itself, a line each.

    The mutants share a server, because starting one takes as long as killing a mutant. The
    unchanged sql/ is tested last, which shows whether a mutant has left something behind.
    """
    misfits = [why for mutant in chosen if (why := misfit(mutant))]
    chosen = [mutant for mutant in chosen if not misfit(mutant)]
    free: SimpleQueue[EmbeddedPostgres] = SimpleQueue()
    with ExitStack() as stack, ThreadPoolExecutor(AT_ONCE) as pool:
        servers = [stack.enter_context(postgres_server(settings=FAST)) for _ in range(AT_ONCE)]
        for server in servers:
            free.put(server)

        def judged(mutant: Mutant) -> Fate:
            server = free.get()
            try:
                fate = fate_of(mutant, server)
            finally:
                free.put(server)
            print(
                f"{mutant.name:60} {fate.seconds:4.0f} s  {fate.killer or 'SURVIVED'}", flush=True
            )
            return fate

        fates = list(pool.map(judged, chosen))
        halves = (SUITE[::2], SUITE[1::2])
        failures = pool.map(lambda half, server: first_failure(SQL, half, server), halves, servers)
        return fates, misfits + [
            f"sql/ as it is fails {failure}" for failure in failures if failure
        ]


def main(parts: list[str]) -> int:
    chosen = [m for m in MUTANTS if not parts or any(part in m.name for part in parts)]
    fates, unfit = judge(chosen)
    survivors = sum(fate.killer is None for fate in fates)
    print(f"{len(fates)} mutants, {len(fates) - survivors} killed, {survivors} survived")
    print(*unfit, sep="\n")
    return 1 if survivors or unfit else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
