-- The history of an order in words, for support staff who answer a customer's question. It has
-- three parts: the events of the order itself, those of its payments, and its state now. Each event
-- has a step, which sorts events of the same moment.
create or replace function flashsale.explain_order(p_order_id bigint)
returns table (at timestamptz, what text)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_order flashsale_data.orders;
  v_item flashsale_data.items;
begin
  select o.* into v_order from flashsale_data.orders o where o.order_id = p_order_id;
  if not found then
    perform flashsale.raise_unknown_order(p_order_id);
  end if;
  select i.* into v_item from flashsale_data.items i where i.item_id = v_order.item_id;
  return query
  select e.at, e.what
  from (
    select * from flashsale.order_story(v_order, v_item.name)
    union all
    select * from flashsale.payment_story(p_order_id)
    union all
    select * from flashsale.order_outlook(v_order, v_item.now_serving, flashsale.clock())
  ) e
  order by e.at, e.step;
end
$$;

comment on function flashsale.explain_order(bigint) is
$$The history of an order in words, oldest first, for support staff
Each row is an event: when it was, and what happened. The last row of a live order says what its
state is now. Errors: RV102 unknown order.$$;

create or replace function flashsale.order_story(p_order flashsale_data.orders, p_item_name text)
returns table (at timestamptz, step integer, what text)
language sql stable set search_path = pg_catalog, pg_temp
as $$
  select p_order.created_at, 1,
    case
      when p_order.status = 'void' then
        format('Ticket %s of %L belongs to nobody: it was withdrawn from sale, or its request '
          'rolled back.', p_order.ticket, p_item_name)
      when p_order.reserved_at = p_order.created_at then
        format('Customer %s asked for %L, got ticket %s and a unit at once.',
          p_order.customer_id, p_item_name, p_order.ticket)
      else
        format('Customer %s asked for %L, got ticket %s and joined the line.',
          p_order.customer_id, p_item_name, p_order.ticket)
    end
  union all
  select p_order.reserved_at, 2,
    format('It was their turn after %s: a unit was set aside.',
      date_trunc('milliseconds', p_order.reserved_at - p_order.created_at))
  where p_order.reserved_at > p_order.created_at
  union all
  select p_order.reserved_at, 3, format('To be paid until %s.', p_order.expires_at)
  where p_order.reserved_at is not null
  union all
  select p_order.paid_at, 7, 'The order was paid. It is final.'
  where p_order.paid_at is not null
  union all
  select p_order.ended_at, 8,
    case p_order.status
      when 'expired' then 'The deadline passed without payment: the unit went to the line.'
      when 'cancelled' then 'It was cancelled.'
      when 'unserved' then 'The sale closed before it was their turn.'
    end
  where p_order.ended_at is not null and p_order.status <> 'void'
$$;

comment on function flashsale.order_story(flashsale_data.orders, text) is
$$The events of an order's history that its own row shows$$;

create or replace function flashsale.payment_story(p_order_id bigint)
returns table (at timestamptz, step integer, what text)
language sql stable set search_path = pg_catalog, pg_temp
as $$
  select p.requested_at, 4,
    format('Payment %s of %s %s was asked for.', p.payment_id, p.amount, p.currency)
  from flashsale_data.payments p where p.order_id = p_order_id
  union all
  select p.opened_at, 5, format('Payment %s could be made at %s.', p.payment_id, p.checkout_url)
  from flashsale_data.payments p where p.order_id = p_order_id and p.opened_at is not null
  union all
  select p.ended_at, 6,
    case p.status
      when 'succeeded' then format('The money of payment %s came in time.', p.payment_id)
      when 'failed' then format('Payment %s failed.', p.payment_id)
      when 'voided' then format('Payment %s was called off.', p.payment_id)
      else
        format('The money of payment %s came but could not be used (%s): it %s.', p.payment_id,
          replace(p.refund_reason, '_', ' '),
          case p.status when 'refunded' then 'was sent back' else 'is being sent back' end)
    end
  from flashsale_data.payments p where p.order_id = p_order_id and p.ended_at is not null
$$;

comment on function flashsale.payment_story(bigint) is
$$The events of an order's history that its payments show$$;

create or replace function flashsale.order_outlook(
  p_order flashsale_data.orders, p_now_serving integer, p_now timestamptz)
returns table (at timestamptz, step integer, what text)
language sql stable set search_path = pg_catalog, pg_temp
as $$
  select p_now, 9,
    case
      when p_order.status = 'waiting' and p_order.ticket > p_now_serving then
        format('Now: waiting; at most %s are served before them.',
          p_order.ticket - p_now_serving - 1)
      when p_order.status = 'waiting' then 'Now: their unit is there, the next sweep grants it.'
      when p_order.expires_at > p_now then
        format('Now: %s left to pay.', date_trunc('seconds', p_order.expires_at - p_now))
      else 'Now: the deadline has passed, the next sweep ends it.'
    end
  where p_order.status in ('waiting', 'reserved')
$$;

comment on function flashsale.order_outlook(flashsale_data.orders, integer, timestamptz) is
$$The state of a live order in words; no row if the order has ended$$;
