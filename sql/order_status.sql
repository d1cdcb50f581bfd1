-- The public view of orders, and the functions that read one order from it.
--
-- A hold past its deadline is shown as what it is then (hold_fates), whether or not a sweep has
-- marked it.
create or replace view flashsale.order_status as
select
  o.order_id,
  o.item_id,
  o.customer_id,
  f.status,
  case when not flashsale.is_entry(o.order_id) then o.ticket end as ticket,
  (l.place).position as position,
  o.created_at,
  case when f.status <> 'waiting' then o.reserved_at end as reserved_at,
  case when f.status <> 'waiting' then o.expires_at end as expires_at,
  o.paid_at,
  case
    when o.status = 'reserved' and f.status = 'expired' then o.expires_at
    else o.ended_at
  end as ended_at,
  coalesce(p.payment_id, case when f.unwritten then o.order_id end) as payment_id,
  coalesce(p.status::text, case when f.unwritten then 'requested' end) as payment_status,
  coalesce(p.amount, case when f.unwritten then i.price * coalesce(o.units, 1) end) as amount,
  coalesce(p.currency, case when f.unwritten then i.currency end) as currency,
  p.checkout_url,
  o.late_order_id,
  p.reference,
  coalesce(o.quantity, case when o.status <> 'void' then 1 end) as quantity,
  case when o.reserved_at is not null and f.status <> 'waiting' then coalesce(o.units, 1) end
    as units,
  (l.place).chance as chance,
  (l.place).as_of as forecast_as_of
from flashsale_data.orders o
join flashsale_data.items i on i.item_id = o.item_id
left join lateral (
  select a.payment_id, a.status, a.amount, a.currency, a.checkout_url, a.reference
  from flashsale_data.payments a
  where a.order_id = o.order_id and o.status <> 'waiting'
  order by a.payment_id desc
  limit 1
) p on true
cross join lateral (
  select
    case
      when o.status = 'reserved' and o.expires_at <= flashsale.clock()
        then flashsale.hold_fate(o.order_id)
      else o.status::text
    end as status,
    -- Whether the order has a first attempt whose row first_payments has not inserted yet. The row
    -- may also exist and belong to another order, if late money has bought one.
    case
      when p.payment_id is not null then false
      when o.status = 'reserved' then true
      when o.status in ('waiting', 'paid') then false
      else o.reserved_at is not null and not exists (
        select from flashsale_data.payments a where a.payment_id = o.order_id)
    end as unwritten
  offset 0 -- keeps the planner from computing this once per use
) f
cross join lateral (
  select case when f.status = 'waiting' then flashsale.place_of(o.order_id) end as place
  offset 0 -- the same
) l
where o.head_id is null;

comment on view flashsale.order_status is
$$Every order as its customer sees it, with its latest payment attempt
An order for several units is one row, with its first ticket.
A hold past its deadline shows as what it is then, whether or not a sweep has marked it: settling,
expired, or waiting again.$$;

comment on column flashsale.order_status.order_id is 'The order.';
comment on column flashsale.order_status.item_id is 'The item.';
comment on column flashsale.order_status.customer_id is 'The customer; null: void.';
comment on column flashsale.order_status.status is
  'entered, waiting, reserved, settling, paid, refunded, expired, cancelled, unserved or void.';
comment on column flashsale.order_status.ticket is
  'The order''s place in its item''s line, from 1; null: it has entered a draw.';
comment on column flashsale.order_status.position is
  'Of a waiting order: its place among those that wait; 1 is next. Exact up to 1,000.';
comment on column flashsale.order_status.created_at is 'When the customer requested the unit.';
comment on column flashsale.order_status.reserved_at is
  'When a unit was set aside; null: it has never held one, or has lost it to an outage.';
comment on column flashsale.order_status.expires_at is 'The deadline: pay before it.';
comment on column flashsale.order_status.paid_at is 'When it was paid.';
comment on column flashsale.order_status.ended_at is
  'When it ended without a sale, or was refunded.';
comment on column flashsale.order_status.payment_id is 'Its latest payment attempt.';
comment on column flashsale.order_status.payment_status is
  'requested, open, succeeded, failed, voided, refund_due or refunded.';
comment on column flashsale.order_status.amount is
  'The amount that attempt requests, in minor units of currency; once money came, what came.';
comment on column flashsale.order_status.currency is 'ISO 4217.';
comment on column flashsale.order_status.checkout_url is
  'Where the customer pays, once the payment is open.';
comment on column flashsale.order_status.late_order_id is
  'Of an expired order: the order that its late money has bought.';
comment on column flashsale.order_status.reference is
  'Of an order that was paid offline: the till''s name of the payment.';
comment on column flashsale.order_status.quantity is 'How many units were asked for; null: void.';
comment on column flashsale.order_status.units is
  'How many units it holds, has bought, or held last; null: it has never held any.';
comment on column flashsale.order_status.quantity is 'How many units were asked for; null: void.';
comment on column flashsale.order_status.units is
  'How many units it holds, has bought, or held last; null: it has never held any.';
comment on column flashsale.order_status.chance is
  'Of a waiting order: the chance that it is served, 0 to 1.';
comment on column flashsale.order_status.forecast_as_of is
  'Of a waiting order: when the counters were brought up to date that chance is computed from.';

-- This has no settings, so that it is inlined.
create or replace function flashsale.as_row(p_order_id bigint, p_outcome text)
returns setof flashsale.order_row
language sql stable rows 1
as $$
  select
    p_outcome, flashsale.shown_id(o.order_id), o.item_id, o.customer_id, o.status, o.ticket,
    o.position, o.created_at, o.reserved_at, o.expires_at, o.paid_at, o.ended_at, o.payment_id,
    o.payment_status, o.amount, o.currency, o.checkout_url, null::timestamptz,
    o.late_order_id, o.reference, o.quantity, o.units, o.chance, o.forecast_as_of
  from flashsale.order_status o
  where o.order_id = flashsale.current_id(p_order_id)
$$;

comment on function flashsale.as_row(bigint, text) is
$$An order as the answer of a verb; no row: there is no such order$$;

create or replace function flashsale.order_status(
  p_order_id bigint, p_customer_id text default null)
returns flashsale.order_row
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_row flashsale.order_row;
begin
  select r.* into v_row
  from flashsale.as_row(p_order_id, 'found') r
  where r.customer_id = p_customer_id or p_customer_id is null;
  if not found then
    perform flashsale.raise_unknown_order(p_order_id);
  end if;
  return v_row;
end
$$;

comment on function flashsale.order_status(bigint, text) is
$$One order, as its customer sees it
p_customer_id: the order's customer; null for any customer's order. Outcomes: found.
Errors: RV102 unknown order, or another customer's.$$;

create or replace function flashsale.answer(p_order_id bigint, p_outcome text)
returns flashsale.order_row
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_row flashsale.order_row;
begin
  select r.* into v_row from flashsale.as_row(p_order_id, p_outcome) r;
  if not found then -- its item is being deleted
    v_row.outcome := p_outcome;
    v_row.order_id := p_order_id;
  end if;
  return v_row;
end
$$;

comment on function flashsale.answer(bigint, text) is
$$The answer of a verb that has had its effect: the order as it is now$$;
