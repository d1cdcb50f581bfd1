"""The ways to break sql/, one rule at a time."""

from __future__ import annotations

from prove.mutants.kinds import Mutant

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

SQL_MUTANTS = [
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
        "    for update skip locked",
        "    for update",
        "found",
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
        "  if v_item.noted_xid <= pg_snapshot_xmin(pg_current_snapshot()) then",
        "  if v_item.noted_xid is not null then",
        "promote",
    ),
    Mutant(
        "fill: two visits instead of three",
        "fill",
        "    v_item.noted_xid := null;",
        "    v_item.noted_xid := pg_current_xact_id();",
        "found",
    ),
    Mutant(
        "fill: up to the last ticket, not the noted one",
        "fill",
        "    v_last := least(v_item.noted_ticket, ",
        "    v_last := least(pg_sequence_last_value(v_item.line), ",
        "found",
    ),
    Mutant(
        "sweep: finds no holes",
        "sweep",
        "    filled := filled + flashsale.fill(v_item_id, p_limit);",
        "    null;",
        "promote",
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
