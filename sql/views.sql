-- Views for operators and dashboards. Columns are appended, never reordered.
create or replace view flashsale.open_reservation as
select
  o.order_id, o.item_id, i.sku, o.customer_id, o.ticket, o.reserved_at, o.expires_at,
  o.expires_at - flashsale.clock() as remaining
from flashsale_data.orders o
join flashsale_data.items i on i.item_id = o.item_id
where o.status = 'reserved' and o.expires_at > flashsale.clock()
  and o.paid_at is null and o.ended_at is null; -- by the index of holds

comment on view flashsale.open_reservation is
$$Holds that can still be paid, with the time that remains$$;

comment on column flashsale.open_reservation.order_id is 'The order.';
comment on column flashsale.open_reservation.item_id is 'The item.';
comment on column flashsale.open_reservation.sku is 'The seller''s name of the item.';
comment on column flashsale.open_reservation.customer_id is
  'The customer, by the name that the caller gave them.';
comment on column flashsale.open_reservation.ticket is
  'The order''s place in its item''s line, from 1.';
comment on column flashsale.open_reservation.reserved_at is
  'When a unit was set aside; null: it has never held one.';
comment on column flashsale.open_reservation.expires_at is 'The deadline: pay before it.';
comment on column flashsale.open_reservation.remaining is 'The time that is left to pay.';

create or replace view flashsale.waiting_line as
select
  o.order_id, o.item_id, i.sku, o.customer_id, o.ticket,
  rank() over (partition by o.item_id order by o.order_id)::integer as position,
  o.created_at,
  flashsale.clock() - o.created_at as waited
from flashsale_data.orders o
join flashsale_data.items i on i.item_id = o.item_id
where o.status = 'waiting' and o.head_id is null;

comment on view flashsale.waiting_line is
$$Waiting orders, with their positions and how long they have waited
The order of the rows is not defined: sort them by item_id and ticket.$$;

comment on column flashsale.waiting_line.order_id is 'The order.';
comment on column flashsale.waiting_line.item_id is 'The item.';
comment on column flashsale.waiting_line.sku is 'The seller''s name of the item.';
comment on column flashsale.waiting_line.customer_id is
  'The customer, by the name that the caller gave them.';
comment on column flashsale.waiting_line.ticket is
  'The order''s place in its item''s line, from 1.';
comment on column flashsale.waiting_line.position is
  'Its place among those that wait; 1 is next. Exact.';
comment on column flashsale.waiting_line.created_at is 'When the customer requested the unit.';
comment on column flashsale.waiting_line.waited is 'How long it has waited.';

create or replace view flashsale.payment_backlog as
select
  p.payment_id, p.order_id, p.status::text as status, p.amount, p.currency, p.session_id,
  p.requested_at,
  flashsale.clock() - coalesce(p.ended_at, p.opened_at, p.requested_at) as since,
  o.status::text as order_status
from flashsale_data.payments p
left join flashsale_data.orders o on o.order_id = p.order_id
where p.status in ('requested', 'refund_due')
  or (p.status = 'open' and (o.status <> 'reserved' or o.expires_at <= flashsale.clock()))
union all
select
  o.order_id, o.order_id, 'requested', i.price * coalesce(o.units, 1), i.currency, null,
  o.reserved_at,
  flashsale.clock() - o.reserved_at, 'reserved'
from flashsale_data.orders o
join flashsale_data.items i on i.item_id = o.item_id
where o.status = 'reserved' and o.expires_at is not null
  and o.paid_at is null and o.ended_at is null -- by the index of holds
  and not exists (select from flashsale_data.payments p where p.order_id = o.order_id);

comment on view flashsale.payment_backlog is
$$Payments that wait for us: to be opened, voided or refunded$$;

comment on column flashsale.payment_backlog.payment_id is 'The payment attempt.';
comment on column flashsale.payment_backlog.order_id is 'Its order; null for a stray.';
comment on column flashsale.payment_backlog.status is
  'requested, refund_due, or open although the hold is over.';
comment on column flashsale.payment_backlog.amount is 'Minor units of currency.';
comment on column flashsale.payment_backlog.currency is 'ISO 4217.';
comment on column flashsale.payment_backlog.session_id is
  'The provider''s name of the attempt; null until it is open.';
comment on column flashsale.payment_backlog.requested_at is 'When the payment was requested.';
comment on column flashsale.payment_backlog.since is
  'How long the payment has been in this state. A healthy service shows seconds.';
comment on column flashsale.payment_backlog.order_status is
  'The state of the order, as last marked by a sweep.';

create or replace view flashsale.money_at_risk as
select
  p.payment_id, p.order_id, p.status::text as status, p.refund_reason, p.amount, p.currency,
  p.session_id, p.ended_at as received_at, flashsale.clock() - p.ended_at as since,
  exists (
    select from flashsale_data.dead_letters d
    where d.queue = 'payments' and d.message ->> 'payment_id' = p.payment_id::text
  ) as given_up
from flashsale_data.payments p
where p.status = 'refund_due';

comment on view flashsale.money_at_risk is
$$Money that we received, and that has to go back but has not yet
If a refund was given up, retry_dead_letter tries it again.$$;

comment on column flashsale.money_at_risk.payment_id is 'The payment.';
comment on column flashsale.money_at_risk.order_id is 'Its order; null for a stray.';
comment on column flashsale.money_at_risk.status is 'refund_due.';
comment on column flashsale.money_at_risk.refund_reason is
  'Why it goes back: wrong_amount, superseded, cancelled, late or stray; staff or customer: they
  refunded a paid order.';
comment on column flashsale.money_at_risk.amount is 'Minor units of currency.';
comment on column flashsale.money_at_risk.currency is 'ISO 4217.';
comment on column flashsale.money_at_risk.session_id is
  'The provider''s name of this piece of money.';
comment on column flashsale.money_at_risk.received_at is 'When we heard of the money.';
comment on column flashsale.money_at_risk.since is 'How long ago that was.';
comment on column flashsale.money_at_risk.given_up is
  'Whether the refund is in the dead letters, and needs a person.';

create or replace view flashsale.stray_payment as
select
  p.payment_id, p.session_id, p.status::text as status, p.amount, p.currency,
  p.ended_at as received_at
from flashsale_data.payments p
where p.order_id is null;

comment on view flashsale.stray_payment is
$$Money that named no payment of ours: kept, shown here and refunded$$;

comment on column flashsale.stray_payment.payment_id is 'The payment that keeps the money.';
comment on column flashsale.stray_payment.session_id is
  'The provider''s name of this piece of money.';
comment on column flashsale.stray_payment.status is 'refund_due or refunded.';
comment on column flashsale.stray_payment.amount is 'Minor units of currency.';
comment on column flashsale.stray_payment.currency is 'ISO 4217.';
comment on column flashsale.stray_payment.received_at is 'When we heard of the money.';

create or replace view flashsale.payment_event as
select
  e.event_id, e.type, e.session_id, e.payment_id, e.amount, e.currency, e.occurred_at,
  e.received_at, e.outcome, e.payload
from flashsale_data.payment_events e;

comment on view flashsale.payment_event is
$$What the payment provider told us, each event once, and what it led to$$;

comment on column flashsale.payment_event.event_id is 'The provider''s name of the event; unique.';
comment on column flashsale.payment_event.type is
  'payment.succeeded, .failed, .voided, .refunded, or another.';
comment on column flashsale.payment_event.session_id is 'The provider''s name of the attempt.';
comment on column flashsale.payment_event.payment_id is
  'The payment that it names, as sent: ours or not.';
comment on column flashsale.payment_event.amount is 'Minor units of currency.';
comment on column flashsale.payment_event.currency is 'ISO 4217.';
comment on column flashsale.payment_event.occurred_at is
  'When it happened, by the provider''s clock.';
comment on column flashsale.payment_event.received_at is 'When we stored it.';
comment on column flashsale.payment_event.outcome is
  'What it led to, as record_payment_event returns it.';
comment on column flashsale.payment_event.payload is
  'Of an unusable event: its text as it came.';

create or replace view flashsale.unusable_event as
select
  e.event_id, e.received_at, e.type, e.session_id, e.payment_id, e.amount, e.currency,
  e.occurred_at, e.payload
from flashsale_data.payment_events e
where e.outcome = 'unusable';

comment on view flashsale.unusable_event is
$$Events of the payment provider that we could not use: please look
Money may have come that we know nothing about. Look the session up at the provider.$$;

comment on column flashsale.unusable_event.event_id is
  'The provider''s name of the event, or sha256: and a sum of its content.';
comment on column flashsale.unusable_event.received_at is 'When we stored it.';
comment on column flashsale.unusable_event.type is 'What it says that has happened.';
comment on column flashsale.unusable_event.session_id is 'The provider''s name of the attempt.';
comment on column flashsale.unusable_event.payment_id is 'The payment that it names.';
comment on column flashsale.unusable_event.amount is 'Minor units of currency.';
comment on column flashsale.unusable_event.currency is 'As sent.';
comment on column flashsale.unusable_event.occurred_at is
  'When it happened, by the provider''s clock.';
comment on column flashsale.unusable_event.payload is 'Its text as it came.';

create or replace view flashsale.settling_order as
select o.order_id, o.item_id, o.customer_id, o.expires_at, o.settle_until
from flashsale_data.orders o
where o.status = 'settling'
  and o.expires_at <= (select flashsale.clock())
  and o.paid_at is null and o.ended_at is null; -- by the index of holds

comment on view flashsale.settling_order is
$$Orders past their deadline about whose money the provider is being asked
Each of them is paid or has expired by settle_until, and a sweep later. Many of them, for longer
than settle_seconds, mean that nobody sweeps.$$;

comment on column flashsale.settling_order.order_id is 'The order.';
comment on column flashsale.settling_order.item_id is 'The item, whose unit is not free yet.';
comment on column flashsale.settling_order.customer_id is 'The customer.';
comment on column flashsale.settling_order.expires_at is 'The deadline, which has passed.';
comment on column flashsale.settling_order.settle_until is
  'When it expires, unless the provider answers before.';

create or replace view flashsale.provider_status as
select d.is_down, case when d.is_down then s.down_since end as down_since, s.noted_at
from (select flashsale.provider_down() as is_down) d
left join flashsale_data.provider_status s on s.one_row;

comment on view flashsale.provider_status is
$$Whether the payment provider is down, as the workers know it: one row
While it is down, nobody is promoted, and no hold is lost that nobody could pay.$$;

comment on column flashsale.provider_status.is_down is
  'Whether a worker has said so in the last ten seconds.';
comment on column flashsale.provider_status.down_since is 'Since when; null: it answers.';
comment on column flashsale.provider_status.noted_at is
  'When it was known to be down the last time; null: never.';

create or replace view flashsale.dead_letter as
select d.dead_letter_id, d.queue, d.message, d.tries, d.error, d.enqueued_at, d.died_at
from flashsale_data.dead_letters d;

comment on view flashsale.dead_letter is
$$Jobs that were given up; retry_dead_letter(dead_letter_id) tries again$$;

comment on column flashsale.dead_letter.dead_letter_id is 'For retry_dead_letter.';
comment on column flashsale.dead_letter.queue is 'payments or notifications.';
comment on column flashsale.dead_letter.message is 'The job, as enqueued.';
comment on column flashsale.dead_letter.tries is 'How often it was tried.';
comment on column flashsale.dead_letter.error is 'What went wrong the last time.';
comment on column flashsale.dead_letter.enqueued_at is 'When it was enqueued.';
comment on column flashsale.dead_letter.died_at is 'When it was given up.';

create or replace view flashsale.sweep_status as
select
  s.runner, max(s.swept_at) as swept_at,
  abs(extract(epoch from flashsale.clock() - max(s.swept_at)))::double precision as lag_seconds,
  sum(s.sweeps)::bigint as sweeps, sum(s.expired)::bigint as expired,
  sum(s.promoted)::bigint as promoted, sum(s.failures)::bigint as failures
from flashsale_data.sweepers s
group by s.runner
order by max(s.swept_at) desc;

comment on view flashsale.sweep_status is
$$Every runner: when it swept last and what it did so far; newest first
A lag of more than a second or two means that the runner has stopped. Runners that have not swept
for a day are forgotten.$$;

comment on column flashsale.sweep_status.runner is
  'The process that sweeps: worker:<host>:<pid>, pg_cron, or the name that a caller gave.';
comment on column flashsale.sweep_status.swept_at is 'When it swept last.';
comment on column flashsale.sweep_status.lag_seconds is
  'How long ago that was; or how far ahead, if the clock has gone back.';
comment on column flashsale.sweep_status.sweeps is 'How many sweeps.';
comment on column flashsale.sweep_status.expired is 'How many holds it expired.';
comment on column flashsale.sweep_status.promoted is 'How many orders it promoted.';
comment on column flashsale.sweep_status.failures is
  'How many of its visits to an item ended with an error: see sweep_failure.';

create or replace view flashsale.sweep_failure as
select f.item_id, i.sku, f.runner, f.failures, f.error, f.since, f.failed_at, f.retry_at
from flashsale_data.sweep_failures f
left join flashsale_data.items i on i.item_id = f.item_id;

comment on view flashsale.sweep_failure is
$$Items whose sweep fails now: their lines stand still, all others go on
A row goes away by itself when the item's sweep succeeds, or ten minutes after the last failure.$$;

comment on column flashsale.sweep_failure.item_id is 'The item.';
comment on column flashsale.sweep_failure.sku is 'The seller''s name of the item.';
comment on column flashsale.sweep_failure.runner is 'The process that met the error.';
comment on column flashsale.sweep_failure.failures is 'How often in a row.';
comment on column flashsale.sweep_failure.error is 'The last error, with its SQLSTATE.';
comment on column flashsale.sweep_failure.since is 'When the item''s sweep failed first.';
comment on column flashsale.sweep_failure.failed_at is 'When it failed last.';
comment on column flashsale.sweep_failure.retry_at is 'When it is tried again.';

-- Filling waits for the oldest transactions of the whole cluster that have an id. The statistics
-- of a session belong to its user: the owner of flashsale sees states and times of others only as
-- a member of pg_read_all_stats. Queries are shown to nobody here.
create or replace function flashsale.running_transactions(
  out xid xid8,
  out pid integer,
  out gid text,
  out database_name text,
  out user_name text,
  out application_name text,
  out state text,
  out since timestamptz)
returns setof record
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
  with next as (
    select pg_snapshot_xmax(pg_current_snapshot())::text::numeric as xid
  ), running as (
    select
      a.backend_xid as xid, a.pid, null::text as gid, a.datname::text as database_name,
      a.usename::text as user_name, a.application_name, a.state, a.xact_start as since
    from pg_stat_activity a
    where a.backend_xid is not null
    union all
    select
      p.transaction, null, p.gid, p.database::text, p.owner::text, null, 'prepared', p.prepared
    from pg_prepared_xacts p
  )
  -- These ids have 32 bits. The full id is the one that is nearest to the next id.
  select
    (n.xid + mod(mod(r.xid::text::numeric - n.xid, 4294967296) + 6442450944, 4294967296)
      - 2147483648)::text::xid8,
    r.pid, r.gid, r.database_name, r.user_name, r.application_name, r.state, r.since
  from running r cross join next n
$$;

comment on function flashsale.running_transactions() is
$$Transactions of the cluster that have an id and have not ended$$;

create or replace view flashsale.filling_blocker as
select
  r.pid, r.gid, r.database_name, r.user_name, r.application_name, r.state, r.since,
  count(*)::integer as items, sum(w.tickets)::bigint as tickets,
  extract(epoch from clock_timestamp() - min(w.noted_at))::double precision as waiting_seconds
from (
  select
    i.noted_xid, i.noted_at, flashsale.issued_tickets(i.item_id) - i.settled as tickets
  from flashsale_data.items i
  where i.settled < i.noted_ticket
    and i.noted_xid > pg_snapshot_xmin(pg_current_snapshot())
    and i.noted_xid < pg_snapshot_xmax(pg_current_snapshot())
) w
join flashsale.running_transactions() r on r.xid < w.noted_xid
group by
  r.pid, r.gid, r.database_name, r.user_name, r.application_name, r.state, r.since;

comment on view flashsale.filling_blocker is
$$Who keeps holes from being filled: open and prepared transactions
A transaction of any database of the cluster that has written something and has not ended. End it:
commit or roll back, pg_terminate_backend(pid), or rollback prepared. Empty when nothing waits.$$;

comment on column flashsale.filling_blocker.pid is 'The session''s process; null: prepared.';
comment on column flashsale.filling_blocker.gid is 'The name of a prepared transaction.';
comment on column flashsale.filling_blocker.database_name is 'Its database.';
comment on column flashsale.filling_blocker.user_name is 'Its user.';
comment on column flashsale.filling_blocker.application_name is
  'What the session calls itself.';
comment on column flashsale.filling_blocker.state is
  'The session''s state, or prepared; null if the owner may not see it (pg_read_all_stats).';
comment on column flashsale.filling_blocker.since is
  'When the transaction began or was prepared; null if the owner may not see it.';
comment on column flashsale.filling_blocker.items is 'How many items'' lines wait for it.';
comment on column flashsale.filling_blocker.tickets is
  'How many of their tickets wait, with and without orders.';
comment on column flashsale.filling_blocker.waiting_seconds is
  'How long the first of them has waited.';

create or replace view flashsale.queue_status as
select
  q.queue, q.depth, q.oldest_age_seconds,
  (select count(*) from flashsale_data.dead_letters d where d.queue = q.queue) as dead
from (
  select
    'payments' as queue, count(*) as depth,
    coalesce(extract(epoch from clock_timestamp() - min(p.enqueued_at)), 0)::double precision
      as oldest_age_seconds
  from pgmq.q_payments p
  union all
  select
    'notifications', count(*),
    coalesce(extract(epoch from clock_timestamp() - min(n.enqueued_at)), 0)::double precision
  from pgmq.q_notifications n
) q;

comment on view flashsale.queue_status is
$$The worker's queues: how many jobs, how old the oldest, how many dead
It counts all jobs, so it is for people and scrapes, and not for a hot path.$$;

comment on column flashsale.queue_status.queue is 'payments or notifications.';
comment on column flashsale.queue_status.depth is 'Jobs in the queue, leased ones included.';
comment on column flashsale.queue_status.oldest_age_seconds is
  'Age of the oldest job; 0 for an empty queue.';
comment on column flashsale.queue_status.dead is 'Jobs of this queue in the dead letters.';

create or replace view flashsale.status_totals as
select t.status, sum(t.orders)::bigint as orders
from flashsale.item_status i
cross join lateral (values
  ('waiting', i.waiting), ('reserved', i.reserved), ('paid', i.paid),
  ('other', i.issued - i.waiting - i.reserved - i.paid)
) t (status, orders)
group by t.status;

comment on view flashsale.status_totals is
$$How many tickets are in which state over all items, up to a second old
An order has one ticket per unit. other: ended without a sale, or just being made.$$;

comment on column flashsale.status_totals.status is 'waiting, reserved, paid or other.';
comment on column flashsale.status_totals.orders is 'How many tickets.';
