-- The promises as queries that must find nothing. The view reads all orders and payments, so use it
-- in tests and drills, or when little is sold.
create or replace view flashsale.violation as
with counted as (
  select
    o.item_id,
    count(*) filter (where o.status in ('reserved', 'settling', 'paid')) as units,
    count(*) filter (where o.status = 'paid') as paid,
    count(*) filter (where o.recycled) as recycled,
    count(*) filter (where o.ended_at is not null and not o.recycled and o.reserved_at is null
        and not flashsale.is_entry(o.order_id))
      as gaps,
    count(*) filter (where o.ticket <= i.settled) as settled
  from flashsale_data.orders o
  join flashsale_data.items i on i.item_id = o.item_id
  group by o.item_id
), tallied as (
  select t.item_id, sum(t.paid) as paid, sum(t.gaps_in_line) as gaps_in_line
  from flashsale_data.tallies t
  group by t.item_id
), withdrawn as (
  select
    w.item_id,
    sum(w.last_ticket - w.first_ticket + 1) as tickets,
    sum(greatest(0, least(w.last_ticket, i.settled) - w.first_ticket + 1)) as settled
  from flashsale_data.withdrawn_tickets w
  join flashsale_data.items i on i.item_id = w.item_id
  group by w.item_id
)
select 'oversold' as promise, i.item_id, null::bigint as order_id,
  format('%s units are reserved or paid, the stock is %s', c.units, i.stock) as detail
from flashsale_data.items i join counted c on c.item_id = i.item_id
where c.units > i.stock
union all
select 'served out of turn', o.item_id, o.order_id,
  format('ticket %s is %s, now_serving is %s', o.ticket, o.status, i.now_serving)
from flashsale_data.orders o join flashsale_data.items i on i.item_id = o.item_id
where (o.status in ('reserved', 'settling', 'paid') or o.recycled) and o.ticket > i.now_serving
union all
select 'forfeits are counted once', i.item_id, null,
  format('%s orders are recycled, %s tickets withdrawn, forfeited is %s',
    coalesce(c.recycled, 0), coalesce(w.tickets, 0), i.forfeited)
from flashsale_data.items i
left join counted c on c.item_id = i.item_id
left join withdrawn w on w.item_id = i.item_id
where coalesce(c.recycled, 0) + coalesce(w.tickets, 0) <> i.forfeited
union all
select 'every settled ticket has its order', i.item_id, null,
  format('tickets 1 to %s have %s orders, %s are withdrawn', i.settled, coalesce(c.settled, 0),
    coalesce(w.settled, 0))
from flashsale_data.items i
left join counted c on c.item_id = i.item_id
left join withdrawn w on w.item_id = i.item_id
where coalesce(c.settled, 0) + coalesce(w.settled, 0) <> i.settled
union all
select 'what is noted is of this cluster', i.item_id, null,
  format('noted_xid is %s, the next id is %s', i.noted_xid,
    pg_snapshot_xmax(pg_current_snapshot()))
from flashsale_data.items i
where i.noted_xid >= pg_snapshot_xmax(pg_current_snapshot())
  and i.noted_xid is distinct from pg_current_xact_id_if_assigned()
  and i.settled < flashsale.issued_tickets(i.item_id)
union all
select 'filling keeps up', i.item_id, null,
  format('ticket %s was noted at %s, and filling is at %s: see filling_blocker', i.noted_ticket,
    i.noted_at, i.settled)
from flashsale_data.items i
where i.settled < i.noted_ticket
  and i.noted_at < clock_timestamp() - interval '10 minutes'
  and exists (
    select from flashsale_data.sweepers s
    where s.swept_at > flashsale.clock() - interval '1 minute') -- else nobody tries
union all
select 'counters add up', i.item_id, null,
  format('counted %s paid and %s gaps, there are %s and %s', i.paid + coalesce(t.paid, 0),
    i.gaps_in_line + coalesce(t.gaps_in_line, 0), coalesce(c.paid, 0), coalesce(c.gaps, 0))
from flashsale_data.items i
left join counted c on c.item_id = i.item_id
left join tallied t on t.item_id = i.item_id
where i.paid + coalesce(t.paid, 0) <> coalesce(c.paid, 0)
  or i.gaps_in_line + coalesce(t.gaps_in_line, 0) <> coalesce(c.gaps, 0)
union all
select 'every ticket is of its line', o.item_id, o.order_id,
  format('ticket %s, the line has given out %s', o.ticket,
    coalesce(flashsale.issued_tickets(o.item_id)::text, 'none: there is no such item'))
from flashsale_data.orders o
where o.order_id in (
    select max(m.order_id) from flashsale_data.orders m
    where not flashsale.is_entry(m.order_id)
    group by m.item_id)
  and o.ticket > coalesce(flashsale.issued_tickets(o.item_id), 0)
  and not exists (select from flashsale_data.deleting_items d where d.item_id = o.item_id)
union all
select 'an order makes sense', o.item_id, o.order_id, format('%s', o)
from flashsale_data.orders o
where o.order_id <> flashsale.order_id_of(o.item_id, o.ticket)
  or o.ticket < 1
  or o.status = 'entered' and not flashsale.is_entry(o.order_id)
  or o.status not in ('entered', 'cancelled', 'unserved') and flashsale.is_entry(o.order_id)
  or (o.customer_id is null) <> (o.status = 'void' or o.head_id is not null)
  or length(o.customer_id) not between 1 and 128
  or o.reserved_at is null and o.expires_at is not null
  or o.expires_at <= o.reserved_at
  or o.expires_at is null and o.status in ('reserved', 'settling', 'paid', 'refunded', 'expired')
    and o.head_id is null
  or o.expires_at is not null and o.status in ('waiting', 'unserved')
  or o.status = 'expired' and o.ended_at < o.expires_at
  or o.status = 'refunded' and o.ended_at < o.paid_at
  or (o.status = 'settling' and o.head_id is null) <> (o.settle_until is not null)
  or o.may_buy_again and o.status not in ('paid', 'refunded')
  or o.settle_until < o.expires_at
  or o.late_order_id is not null and (o.status <> 'expired' or not exists (
    select from flashsale_data.orders b
    where b.order_id = o.late_order_id and b.item_id = o.item_id
      and b.customer_id = o.customer_id and b.status in ('paid', 'refunded')))
  or o.recycled and o.ended_at is null
union all
select 'paid means paid for', o.item_id, o.order_id, 'paid without exactly one successful payment'
from flashsale_data.orders o
where o.status = 'paid' and o.head_id is null
  and 1 <> (
    select count(*) from flashsale_data.payments p
    where p.order_id = o.order_id and p.status = 'succeeded')
union all
select 'money buys an order or goes back', o.item_id, o.order_id,
  format('payment %s succeeded, the order is %s', p.payment_id, o.status)
from flashsale_data.payments p join flashsale_data.orders o on o.order_id = p.order_id
where p.status = 'succeeded' and o.status <> 'paid'
union all
select 'a refund gives the money back once', o.item_id, o.order_id,
  'refunded without exactly one payment that goes back for that'
from flashsale_data.orders o
where o.status = 'refunded' and o.head_id is null
  and 1 <> (
    select count(*) from flashsale_data.payments p
    where p.order_id = o.order_id and p.refund_reason in ('staff', 'customer', 'provider'))
union all
select 'a success has its session', o.item_id, o.order_id,
  format('payment %s succeeded without a session of the provider or a reference of a till',
    p.payment_id)
from flashsale_data.payments p left join flashsale_data.orders o on o.order_id = p.order_id
where p.status = 'succeeded' and (p.session_id is null) = (p.reference is null)
union all
select 'a reference pays one order', null, p.order_id,
  format('payment %s has the reference %L', p.payment_id, p.reference)
from flashsale_data.payments p
where p.reference is not null
  and not exists (
    select from flashsale_data.offline_references r
    where r.reference = p.reference and r.order_id = p.order_id)
union all
select 'a payment has its order', null, p.order_id, format('payment %s', p.payment_id)
from flashsale_data.payments p
where p.order_id is not null
  and not exists (select from flashsale_data.orders o where o.order_id = p.order_id)
union all
select 'a payment that is due has its job', null, p.order_id,
  format('payment %s is %s and has neither a job nor a dead letter', p.payment_id, p.status)
from (
  select a.payment_id, a.order_id, a.status
  from flashsale_data.payments a
  where a.status in ('requested', 'refund_due')
  union all
  select o.order_id, o.order_id, 'requested'
  from flashsale_data.orders o
  where o.status = 'reserved' and o.head_id is null
    and not exists (select from flashsale_data.payments a where a.order_id = o.order_id)
  union all
  select a.payment_id, a.order_id, 'open' -- its void
  from flashsale_data.payments a join flashsale_data.orders o on o.order_id = a.order_id
  where (a.status = 'open' or a.status = 'failed' and a.payable)
    and (o.ended_at is not null or o.status in ('settling', 'paid'))
) p
left join (
  select q.message ->> 'kind' as kind, q.message ->> 'payment_id' as payment_id
  from pgmq.q_payments q
  union -- without duplicates, so that one hash join is enough
  select d.message ->> 'kind', d.message ->> 'payment_id'
  from flashsale_data.dead_letters d
  where d.queue = 'payments'
  union
  select 'void', a.payment_id::text -- the void of an order is that of all its sessions
  from pgmq.q_payments q
  join flashsale_data.payments a on a.order_id::text = q.message ->> 'order_id'
  where q.message ->> 'kind' = 'void'
) j
  on j.payment_id = p.payment_id::text
  and j.kind = case p.status when 'requested' then 'open' when 'open' then 'void' else 'refund' end
where j.kind is null
union all
select 'a key leads to its order', k.item_id, k.order_id,
  format('customer %s, key %s', k.customer_id, k.idempotency_key)
from flashsale_data.order_keys k
left join flashsale_data.items i on i.item_id = k.item_id
where not exists (
  select from flashsale_data.orders o
  where o.order_id = coalesce((
      select d.order_id from flashsale_data.drawn_entries d where d.entry_id = k.order_id),
      k.order_id)
    and o.customer_id = k.customer_id
    and coalesce(o.product_id, o.item_id) = coalesce(i.product_id, k.item_id))
union all
select 'a part belongs to its order', p.item_id, p.order_id, format('%s', p)
from flashsale_data.orders p
left join flashsale_data.orders h on h.order_id = p.head_id
where p.head_id is not null and (
  h.quantity > 1 and h.head_id is null and h.item_id = p.item_id and h.ticket < p.ticket
  and h.product_id is not distinct from p.product_id
  and p.expires_at is null and p.settle_until is null and p.quantity is null
  and (p.status = h.status and p.paid_at is not distinct from h.paid_at
    or p.status = 'unserved' and p.reserved_at is null and h.reserved_at is not null)
) is not true
union all
select 'an order has its tickets and units', h.item_id, h.order_id,
  format('%s of %s units (at least %s), there are %s tickets and %s units', h.units, h.quantity,
    h.min_quantity, 1 + t.tickets, 1 + t.units)
from flashsale_data.orders h
cross join lateral (
  select count(*) as tickets, count(*) filter (where p.status = h.status) as units
  from flashsale_data.orders p
  where p.head_id = h.order_id
) t
where h.quantity is not null and not flashsale.is_entry(h.order_id) and (
  h.quantity = 1 + t.tickets
  and case when h.reserved_at is null or h.status = 'waiting' then h.units is null
    else h.units = 1 + t.units
      and h.units between coalesce(h.min_quantity, h.quantity) and h.quantity end
) is not true
union all
select 'nobody is over their limit', min(o.item_id), min(o.order_id),
  format('customer %s has bought or asked for %s units, the limit was never above %s',
    o.customer_id, sum(coalesce(o.units, o.quantity, 1)), l.highest)
from flashsale_data.orders o
join (
  select coalesce(i.product_id, i.item_id) as product_id, max(i.highest_limit) as highest
  from flashsale_data.items i
  group by coalesce(i.product_id, i.item_id)
) l on l.product_id = coalesce(o.product_id, o.item_id)
where o.ended_at is null and o.customer_id is not null
group by l.product_id, l.highest, o.customer_id
having sum(coalesce(o.units, o.quantity, 1)) > l.highest
union all
select 'no unit is set aside for too long', o.item_id, o.order_id,
  format('since %s, for an order that waits for more', o.part_served_at)
from flashsale_data.orders o
join flashsale_data.items i on i.item_id = o.item_id
where o.status = 'waiting' and o.head_id is null and o.reserved_at is null
  and not flashsale.provider_down()
  and flashsale.shut_by(i.opens_at, i.closes_at, i.paused, flashsale.clock()) is null
  and o.part_served_at + i.hold_seconds * interval '1 second' < (
    select max(s.swept_at) - interval '10 seconds' from flashsale_data.sweepers s)
union all
select 'a draw leaves nobody out', o.item_id, o.order_id, format('the draw is %s', i.draw)
from flashsale_data.orders o
join flashsale_data.items i on i.item_id = o.item_id
where o.status = 'entered' and (i.draw in ('entering', 'listing', 'drawing')) is not true
union all
select 'a draw is as its secret says', d.item_id, d.order_id,
  format('entry %s should have ticket %s', d.entry_id, d.ticket)
from (
  select
    w.item_id, e.entry_id, e.order_id,
    1 + sum(e.quantity) over (
      partition by w.item_id
      order by sha256(w.secret || w.list_hash || convert_to(e.entry_id::text, 'UTF8')))
      - e.quantity as ticket
  from flashsale_data.draws w
  join flashsale_data.items i on i.item_id = w.item_id and i.draw = 'drawn'
  join flashsale_data.drawn_entries e on e.entry_id >> 32 = w.item_id
) d
where (d.order_id & 4294967295) is distinct from d.ticket
  or not exists (select from flashsale_data.orders o where o.order_id = d.order_id);

comment on view flashsale.violation is
$$Every row is a broken promise: this view is always empty
It reads all orders and payments. What constraints guarantee is not checked here again.$$;

comment on column flashsale.violation.promise is 'The promise that is broken.';
comment on column flashsale.violation.item_id is 'The item, if it is about one.';
comment on column flashsale.violation.order_id is 'The order, if it is about one.';
comment on column flashsale.violation.detail is 'What was found.';
