-- The story of an order in words, for support staff who answer a customer's question. It has four
-- parts: the events of the order itself, those of its payments, what staff have done, and its state
-- now. Each event has a step, which sorts events of the same moment.
create or replace function flashsale.explain_order(p_order_id bigint)
returns table (at timestamptz, what text)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_order flashsale_data.orders;
  v_item flashsale_data.items;
begin
  select o.* into v_order
  from flashsale_data.orders o
  where o.order_id = flashsale.current_id(p_order_id) and o.head_id is null;
  if not found then
    perform flashsale.raise_unknown_order(p_order_id);
  end if;
  select i.* into v_item from flashsale_data.items i where i.item_id = v_order.item_id;
  return query
  select e.at, e.what
  from (
    select * from flashsale.order_story(v_order, v_item)
    union all
    select * from flashsale.draw_story(v_order)
    union all
    select * from flashsale.payment_story(v_order)
    union all
    select * from flashsale.staff_story(v_order)
    union all
    select * from flashsale.order_outlook(v_order, v_item, flashsale.clock())
  ) e
  order by e.at, e.step;
end
$$;

comment on function flashsale.explain_order(bigint) is
$$The history of an order in words, oldest first, for support staff
Each row is an event: when it was, and what happened. The last row of a live order says what its
state is now. Errors: RV102 unknown order.$$;

create or replace function flashsale.why_refunded(p_order_id bigint) returns text
language sql stable set search_path = pg_catalog, pg_temp
as $$
  select case p.refund_reason
    when 'staff' then ' by staff'
    when 'customer' then ', because the customer gave it back'
    when 'provider' then ' at the payment provider'
  end
  from flashsale_data.payments p
  where p.order_id = p_order_id and p.refund_reason in ('staff', 'customer', 'provider')
  limit 1
$$;

comment on function flashsale.why_refunded(bigint) is
$$Who refunded a paid order, in words$$;

-- These two have no settings, so that they are inlined.
create or replace function flashsale.units_in_words(p_units integer) returns text
language sql immutable parallel safe
as $$
  select case when p_units > 1 then format('%s units were', p_units) else 'a unit was' end
$$;

comment on function flashsale.units_in_words(integer) is
$$How many units something has happened to; null: one$$;

create or replace function flashsale.wish_in_words(p_quantity integer, p_name text) returns text
language sql immutable parallel safe
as $$
  select case when p_quantity > 1 then format('%s units of %L', p_quantity, p_name)
    else format('%L', p_name) end
$$;

comment on function flashsale.wish_in_words(integer, text) is
$$What a customer asked for; null: one unit$$;

create or replace function flashsale.order_story(
  p_order flashsale_data.orders, p_item flashsale_data.items)
returns table (at timestamptz, step integer, what text)
language sql stable set search_path = pg_catalog, pg_temp
as $$
  select p_order.created_at, 1,
    case
      when flashsale.is_entry(flashsale.shown_id(p_order.order_id)) then
        format('Customer %s entered the draw of %L.', p_order.customer_id, p_item.name)
      when p_order.status = 'void' then
        format('Ticket %s of %L belongs to nobody: it was withdrawn from sale, or its request '
          'rolled back.', p_order.ticket, p_item.name)
      when p_order.reserved_at = p_order.created_at or exists ( -- a hold that an outage has ended
        select from flashsale_data.payments p
        where p.payment_id = p_order.order_id and p.requested_at = p_order.created_at)
      then
        format('Customer %s asked for %s, got ticket %s and %s at once.',
          p_order.customer_id, flashsale.wish_in_words(p_order.quantity, p_item.name),
          p_order.ticket,
          case when p_order.quantity > 1 then p_order.units || ' units' else 'a unit' end)
      else
        format('Customer %s asked for %s, got ticket %s and joined the line.',
          p_order.customer_id, flashsale.wish_in_words(p_order.quantity, p_item.name),
          p_order.ticket)
    end
  union all
  select p_order.reserved_at, 2,
    format('It was their turn after %s: %s set aside.',
      date_trunc('milliseconds', p_order.reserved_at - p_order.created_at),
      flashsale.units_in_words(p_order.units))
  where p_order.reserved_at > p_order.created_at
  union all
  select p_order.reserved_at, 3, format('To be paid until %s.', p_order.expires_at)
  where p_order.expires_at is not null
  union all
  select p_order.expires_at, 4,
    format('The deadline passed. The payment provider was asked for up to %s s whether money had '
      'come in time.', p_item.settle_seconds)
  where p_order.status = 'settling' or p_order.status in ('paid', 'refunded', 'expired')
    and p_item.settle_seconds > 0
    and exists (
      select from flashsale_data.payments p
      where p.order_id = p_order.order_id and p.opened_at < p_order.expires_at
        and p.ended_at >= p_order.expires_at
        and (p_order.paid_at is null or p.status <> 'voided')) -- the money's, if it was paid
  union all
  select p_order.paid_at, 7, 'The order was paid.'
  where p_order.paid_at is not null
  union all
  select p_order.ended_at, 8,
    case p_order.status
      when 'expired' then case
        when p_order.late_order_id is not null then
          format('The order expired. Its money came after that, and bought order %s.',
            p_order.late_order_id)
        else 'The deadline passed without payment: the unit went to the line.'
      end
      when 'cancelled' then 'It was cancelled.'
      when 'unserved' then case
        when p_order.part_served_at is not null
          and flashsale.shut_by(null, p_item.closes_at, false, p_order.ended_at) is null
          then 'Too few units came in time. Those that were set aside went to the line.'
        else 'The sale closed before it was their turn.' end
      when 'refunded' then format('The order was refunded%s: the unit is not theirs any more.',
        flashsale.why_refunded(p_order.order_id))
    end
  where p_order.ended_at is not null and p_order.status <> 'void'
$$;

comment on function flashsale.order_story(flashsale_data.orders, flashsale_data.items) is
$$The events of an order's history that its own row shows$$;

create or replace function flashsale.draw_story(p_order flashsale_data.orders)
returns table (at timestamptz, step integer, what text)
language sql stable set search_path = pg_catalog, pg_temp
as $$
  select d.done_at, 1,
    format('The draw was done: they got ticket %s of %s.', p_order.ticket, d.units)
  from flashsale_data.draws d
  where d.item_id = p_order.item_id and d.done_at is not null
    and flashsale.shown_id(p_order.order_id) <> p_order.order_id
$$;

comment on function flashsale.draw_story(flashsale_data.orders) is
$$When an entry of a draw got its ticket; no row: it is none, or has none$$;

create or replace function flashsale.end_of_payment(
  p_order flashsale_data.orders, p_payment_id bigint)
returns text
language sql stable set search_path = pg_catalog, pg_temp
as $$
  select case
    when p.reference is not null then
      format('A till took %s (%s).', m.money, p.reference)
    when p.status = 'failed' and p.payable then
      format('Payment %s failed; the customer may still try it again there.', p.payment_id)
    when p.asked_until is not null and p.status in ('failed', 'voided') then
      format('Another one took the place of payment %s, because of the new deadline.', p.payment_id)
    when p.status = 'failed' then format('Payment %s failed.', p.payment_id)
    when p.status = 'voided' then format('Payment %s was called off.', p.payment_id)
    when p.refund_reason not in ('staff', 'customer', 'provider') then
      format('%s came for payment %s but could not be used (%s): it %s sent back.', m.money,
        p.payment_id, replace(p.refund_reason, '_', ' '),
        case p.status when 'refunded' then 'was' else 'is being' end)
    when p.requested_at < p_order.created_at then
      format('%s of payment %s came after the deadline of an earlier order. A unit was free, so '
        'they bought this one.', m.money, p.payment_id)
    else format('%s came for payment %s, at %s.', m.money, p.payment_id, p.captured_at)
  end
  from flashsale_data.payments p
  cross join lateral (select flashsale.money(p.amount, p.currency) as money) m
  where p.payment_id = p_payment_id
$$;

comment on function flashsale.end_of_payment(flashsale_data.orders, bigint) is
$$How an attempt to pay an order ended, in words$$;

create or replace function flashsale.payment_story(p_order flashsale_data.orders)
returns table (at timestamptz, step integer, what text)
language sql stable set search_path = pg_catalog, pg_temp
as $$
  with attempts as (
    select
      p.*, flashsale.money(p.amount, p.currency) as money, -- what came, which may be another amount
      flashsale.money(i.price * coalesce(p_order.units, 1), i.currency) as price
    from flashsale_data.payments p
    join flashsale_data.items i on i.item_id = p_order.item_id
    where p.order_id = p_order.order_id
  )
  select a.requested_at, 4, format('Payment %s of %s was asked for.', a.payment_id, a.price)
  from attempts a where a.reference is null
  union all
  select a.opened_at, 5, format('Payment %s could be made at %s.', a.payment_id, a.checkout_url)
  from attempts a where a.opened_at is not null
  union all
  select a.unavailable_at, 5,
    format('The payment provider did not answer: payment %s could not be opened.', a.payment_id)
  from attempts a where a.unavailable_at is not null
  union all
  select a.refused_at, 5, format('The payment provider refused to open payment %s.', a.payment_id)
  from attempts a where a.refused_at is not null
  union all
  select greatest(a.expires_at, a.unavailable_at), 6,
    format('Nobody could make payment %s: the order went back to the line, as the next.',
      a.payment_id)
  from attempts a where a.expires_at is not null
  union all
  select a.ended_at, 6, flashsale.end_of_payment(p_order, a.payment_id)
  from attempts a
  where a.ended_at is not null
    and (a.expires_at is null or a.status not in ('failed', 'voided')) -- that was told
  union all
  select coalesce(a.refunded_at, p_order.ended_at), 11,
    case
      when a.reference is not null then
        format('The till pays %s out (%s).', a.money, a.reference)
      when a.refunded_at is null then
        format('%s of payment %s is being sent back.', a.money, a.payment_id)
      else format('%s of payment %s went back.', a.money, a.payment_id)
    end
  from attempts a
  where a.refunded_at is not null
    or a.status = 'refund_due' and a.refund_reason in ('staff', 'customer')
$$;

comment on function flashsale.payment_story(flashsale_data.orders) is
$$The events of an order's history that its payments show$$;

create or replace function flashsale.staff_story(p_order flashsale_data.orders)
returns table (at timestamptz, step integer, what text)
language sql stable set search_path = pg_catalog, pg_temp
as $$
  select h.at, 10,
    case h.action
      when 'refund_at_provider' then h.reason
      when 'refund_order' then
        format('%s refunded the order; its unit %s. Reason: %s', h.staff,
          case when h.after -> 'return_units' = 'false' then 'stays off sale'
            else 'goes back on sale' end,
          h.reason)
      when 'pay_offline' then format('%s recorded the payment at the till.', h.staff)
      when 'cancel' then concat_ws(' ', format('%s cancelled the order.', h.staff), h.reason)
      when 'retry_dead_letter' then format('%s tried a job again that was given up.', h.staff)
      else concat_ws(' ', format('%s: %s.', h.staff, h.action), h.reason)
    end
  from flashsale_data.history h
  where h.order_id = p_order.order_id
  union all
  select h.at, 10,
    format('%s gave all who held a unit %s s more. Reason: %s', h.staff, h.after ->> 'seconds',
      h.reason)
  from flashsale_data.history h
  where h.item_id = p_order.item_id and h.action = 'extend_holds'
    and h.at >= p_order.reserved_at
    and h.at < least(p_order.expires_at, p_order.paid_at, p_order.ended_at)
$$;

comment on function flashsale.staff_story(flashsale_data.orders) is
$$What staff have done with an order, or with all holds of its item$$;

create or replace function flashsale.order_outlook(
  p_order flashsale_data.orders, p_item flashsale_data.items, p_now timestamptz)
returns table (at timestamptz, step integer, what text)
language sql stable set search_path = pg_catalog, pg_temp
as $$
  select p_now, 12,
    case
      when p_order.status = 'entered' then
        'Now: entered; they get their place when the item opens and its draw is done.'
      when p_order.status = 'waiting' and p_order.ticket > p_item.now_serving then
        format('Now: waiting; at most %s are served before them.',
          p_order.ticket - p_item.now_serving - 1)
      when p_order.status = 'waiting' and p_order.part_served_at is not null
        and flashsale.served_tickets(p_order.order_id, p_item.now_serving)
          < coalesce(p_order.min_quantity, p_order.quantity)
      then
        format('Now: waiting for at least %s units; %s of them set aside until %s.',
          coalesce(p_order.min_quantity, p_order.quantity),
          flashsale.served_tickets(p_order.order_id, p_item.now_serving),
          p_order.part_served_at + p_item.hold_seconds * interval '1 second')
      when flashsale.provider_down() and p_order.status = 'waiting' then
        'Now: their unit is there. Nobody can pay, because the payment provider is down; it is '
        'granted when the provider is back.'
      when p_order.status = 'waiting' then 'Now: their unit is there, the next sweep grants it.'
      when p_order.status = 'settling' then
        format('Now: settling; it ends with the provider''s answer, or at %s.',
          p_order.settle_until)
      when p_order.expires_at > p_now then
        format('Now: %s left to pay.', date_trunc('seconds', p_order.expires_at - p_now))
          || case when flashsale.provider_down() then ' The payment provider is down.' else '' end
      else
        format('Now: the deadline has passed; the next sweep makes it %s.',
          flashsale.hold_fate(p_order.order_id))
    end
  where p_order.status in ('entered', 'waiting', 'reserved', 'settling')
$$;

comment on function flashsale.order_outlook(
  flashsale_data.orders, flashsale_data.items, timestamptz) is
$$The state of a live order in words; no row if the order has ended$$;
