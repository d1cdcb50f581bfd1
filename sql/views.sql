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

create or replace view flashsale.waiting_line as
select
  o.order_id, o.item_id, i.sku, o.customer_id, o.ticket,
  greatest(1, o.ticket - i.now_serving) as position,
  o.created_at,
  flashsale.clock() - o.created_at as waited
from flashsale_data.orders o
join flashsale_data.items i on i.item_id = o.item_id
where o.status = 'waiting';

comment on view flashsale.waiting_line is
$$Who waits for what, since when, and at which position
At most position orders, this one included, are served before the next after it.$$;

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
  o.order_id, o.order_id, 'requested', i.price, i.currency, null, o.reserved_at,
  flashsale.clock() - o.reserved_at, 'reserved'
from flashsale_data.orders o
join flashsale_data.items i on i.item_id = o.item_id
where o.status = 'reserved' and o.expires_at is not null
  and o.paid_at is null and o.ended_at is null -- by the index of holds
  and not exists (select from flashsale_data.payments p where p.order_id = o.order_id);

comment on view flashsale.payment_backlog is
$$Payments that wait for us: to be opened, voided or refunded
since: how long in this state. A healthy service shows seconds.$$;

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
$$Money that we received, could not use, and have not sent back yet
given_up: the refund is in the dead letters and needs a person (retry_dead_letter).$$;

create or replace view flashsale.stray_payment as
select
  p.payment_id, p.session_id, p.status::text as status, p.amount, p.currency,
  p.ended_at as received_at
from flashsale_data.payments p
where p.order_id is null;

comment on view flashsale.stray_payment is
$$Money that named no payment of ours: kept, shown here and refunded$$;

create or replace view flashsale.payment_event as
select
  e.event_id, e.type, e.session_id, e.payment_id, e.amount, e.currency, e.occurred_at,
  e.received_at, e.outcome
from flashsale_data.payment_events e;

comment on view flashsale.payment_event is
$$What the payment provider told us, each event once, and what it led to$$;

create or replace view flashsale.dead_letter as
select d.dead_letter_id, d.queue, d.message, d.tries, d.error, d.enqueued_at, d.died_at
from flashsale_data.dead_letters d;

comment on view flashsale.dead_letter is
$$Jobs that were given up; retry_dead_letter(dead_letter_id) tries again$$;

create or replace view flashsale.sweep_status as
select
  s.runner, s.swept_at,
  abs(extract(epoch from flashsale.clock() - s.swept_at))::double precision as lag_seconds,
  s.sweeps, s.expired, s.promoted
from flashsale_data.sweepers s
order by s.swept_at desc;

comment on view flashsale.sweep_status is
$$Who swept, when last, and what it did so far; the newest first
lag_seconds: since its last sweep, or, if the clock has gone back, until then, which is as bad.
Runners silent for a day are forgotten.$$;

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
Counts the queue: for people and scrapes, not for a hot path.$$;

create or replace view flashsale.outcome_totals as
select t.outcome, sum(t.orders)::bigint as orders
from flashsale.item_status i
cross join lateral (values
  ('waiting', i.waiting), ('reserved', i.reserved), ('paid', i.paid),
  ('other', i.issued - i.waiting - i.reserved - i.paid)
) t (outcome, orders)
group by t.outcome;

comment on view flashsale.outcome_totals is
$$How many orders are in which state over all items, up to a second old
other: ended without a sale, or just being made.$$;
