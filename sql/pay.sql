-- pay records money that has come. Nothing else decides what happens to money: it buys an order, or
-- it is refunded.
--
-- This stays correct when the customer cancels, the hold ends and the provider reports the same
-- money twice, all at the same time, for these reasons:
--
-- * A session at the payment provider is one piece of money. If we know the session, its payment
--   decides, whatever payment the message names. Once the order is locked, the payment is read
--   anew: another message about it may have had its effect meanwhile, and may even have bought
--   another order with it (buy_late).
-- * The order is locked first and its payment after that (the lock order of install.sql). cancel,
--   expire and another pay for the same order wait here, or this call waits for them.
-- * The clock is read after the locks. The money came when the provider says so, if that can be:
--   not before the session was opened, and not after the database's clock. Otherwise it came now.
-- * Money that came before the deadline buys the order as long as its unit is held, whichever
--   attempt it is for. From the deadline on hold_fates says whether it is held.
-- * Every update names the states that it leaves, so the same money has its effect once.
-- * The order's change, the payment's change and the job or e-mail that follows commit together.
create or replace function flashsale.pay(
  p_payment_id bigint, p_session_id text, p_amount bigint, p_currency text,
  p_captured_at timestamptz default null)
returns flashsale.order_row
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_payment_id constant bigint := coalesce(
    (select p.payment_id from flashsale_data.payments p where p.session_id = p_session_id),
    p_payment_id);
  v_payment flashsale_data.payments;
  v_order flashsale_data.orders;
  v_now timestamptz;
  v_captured_at timestamptz;
  v_refund_reason text;
begin
  if coalesce(length(p_session_id) not between 1 and 255, true)
    or coalesce(p_amount not between 1 and 1000000000000000, true)
    or coalesce(p_currency !~ '^[A-Z]{3}$', true)
  then
    perform flashsale.raise_bad_payment(p_session_id, p_amount, p_currency);
  end if;

  select o.* into v_order
  from flashsale_data.orders o
  where o.order_id = coalesce(
    (select p.order_id from flashsale_data.payments p where p.payment_id = v_payment_id),
    v_payment_id)
  for update;
  perform flashsale.first_payments(array[v_order.order_id]);
  select p.* into v_payment
  from flashsale_data.payments p
  where p.payment_id = v_payment_id
  for update;
  v_now := flashsale.clock();

  if (v_payment.order_id is not null and v_payment.reference is null
    and coalesce(v_payment.session_id, p_session_id) = p_session_id) is not true
  then
    return flashsale.keep_stray(p_session_id, p_amount, p_currency, v_now);
  elsif v_payment.status in ('succeeded', 'refund_due', 'refunded') then
    return flashsale.decided_before(v_payment);
  end if;

  v_captured_at := case
    when p_captured_at between coalesce(v_payment.opened_at, v_payment.requested_at) and v_now
      then p_captured_at
    else v_now
  end;
  v_refund_reason := case
    when p_amount <> v_payment.amount or p_currency <> v_payment.currency then 'wrong_amount'
    when v_order.status in ('paid', 'refunded') then 'superseded'
    when v_order.status = 'cancelled' then 'cancelled'
    when v_order.status not in ('reserved', 'settling') then 'late'
    when v_captured_at >= v_order.expires_at then 'late'
    when v_order.status = 'settling' or v_order.expires_at > v_now then null
    when flashsale.hold_fate(v_order.order_id) = 'settling' then null
    else 'late'
  end;
  if v_refund_reason is null then
    return flashsale.buy_in_time(
      v_payment_id, v_order.order_id, p_session_id, v_captured_at, v_now);
  end if;
  return flashsale.do_not_buy(
    v_payment, v_order, p_session_id, p_amount, p_currency, v_refund_reason, v_captured_at, v_now);
end
$$;

comment on function flashsale.pay(bigint, text, bigint, text, timestamptz) is
$$Records money for a payment: it buys the order, or it is refunded
The order is paid if the money came before its deadline and the unit is still held: the order is
reserved, or settling. Any attempt of the order buys; the others are voided. p_payment_id: as in the
payment job. p_session_id: the provider's name for this piece of money, 1 to 255 characters.
p_amount: 1 to 10^15 minor units of p_currency. p_captured_at: when the money came, by the
provider's clock; it counts if it lies between the opening of the session and now. Safe to call
again: the same money has its effect once.
Outcomes: paid; already_paid; refund_due (the money came late or after a cancellation, the order is
paid already, or it is not the requested amount); stray (it names no payment of ours: it is kept as
a payment without an order, and refunded).
Errors: RV303 not a session, amount and currency.$$;

create or replace function flashsale.raise_bad_payment(
  p_session_id text, p_amount bigint, p_currency text)
returns void
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'This is not a payment.' using
    errcode = 'RV303', constraint = 'bad_payment',
    detail = format('session %L, %s %s', p_session_id, p_amount, p_currency),
    hint = 'Pass the session (1 to 255 characters), the amount (1 to 1000000000000000 minor units) '
      'and the currency.';
end
$$;

comment on function flashsale.raise_bad_payment(text, bigint, text) is
$$Raises RV303: these are not a session, an amount and a currency$$;

create or replace function flashsale.decided_before(p_payment flashsale_data.payments)
returns flashsale.order_row
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
  return flashsale.answer(
    p_payment.order_id,
    case p_payment.status when 'succeeded' then 'already_paid' else 'refund_due' end);
end
$$;

comment on function flashsale.decided_before(flashsale_data.payments) is
$$The answer about money that has had its effect already$$;

create or replace function flashsale.paid_data(
  p_payment_id bigint, p_amount bigint, p_currency text, p_units integer, p_paid_at timestamptz)
returns jsonb
language sql stable
as $$
  select jsonb_build_object(
    'payment_id', p_payment_id::text, -- null: it did not come through the provider
    'amount', p_amount, 'currency', p_currency,
    'units', coalesce(p_units, 1), 'paid_at', flashsale.utc(p_paid_at))
$$;

comment on function flashsale.paid_data(bigint, bigint, text, integer, timestamptz) is
$$What the feed tells of a paid order$$;

create or replace function flashsale.buy_in_time(
  p_payment_id bigint,
  p_order_id bigint,
  p_session_id text,
  p_captured_at timestamptz,
  p_now timestamptz)
returns flashsale.order_row
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_has_others boolean;
  v_is_group boolean;
begin
  with paid as (
    update flashsale_data.orders o
    set
      status = 'paid', settle_until = null,
      paid_at = greatest(p_captured_at, o.reserved_at) -- money for an attempt of an earlier hold
    where o.order_id = p_order_id
      and o.status in ('reserved', 'settling')
      and o.expires_at > p_captured_at
    returning o.order_id, o.item_id, o.quantity, o.units, o.paid_at
  ), tallied as (
    insert into flashsale_data.tallies (item_id, paid, gaps_in_line)
    select p.item_id, coalesce(p.units, 1), 0 from paid p
  ), bought as (
    update flashsale_data.payments p
    set
      status = 'succeeded', session_id = p_session_id, ended_at = p_now, payable = false,
      captured_at = p_captured_at
    from paid
    where p.payment_id = p_payment_id
      and p.order_id = paid.order_id
      and p.status in ('requested', 'open', 'failed', 'voided')
    returning p.amount, p.currency, paid.quantity, paid.units, paid.paid_at,
      exists (
        select from flashsale_data.payments q
        where q.order_id = p_order_id and q.payment_id <> p_payment_id) as has_others
  ), noted as (
    insert into flashsale_data.outbox (type, order_id, at, data)
    select
      'order.paid', p_order_id, p_now,
      flashsale.paid_data(p_payment_id, b.amount, b.currency, b.units, b.paid_at)
    from bought b
  )
  select b.has_others, b.quantity > 1 into v_has_others, v_is_group from bought b;
  if v_is_group then
    perform flashsale.parts_follow(array[p_order_id]);
  end if;
  if v_has_others then
    perform flashsale.enqueue_voids(array[p_order_id]);
  end if;
  perform flashsale.enqueue_mail('paid', array[p_order_id]);
  return flashsale.answer(p_order_id, 'paid');
end
$$;

comment on function flashsale.buy_in_time(bigint, bigint, text, timestamptz, timestamptz) is
$$Pays an order with money that came before its deadline
The caller has locked the order and its payment, and read p_now after that.$$;

create or replace function flashsale.do_not_buy(
  p_payment flashsale_data.payments,
  p_order flashsale_data.orders,
  p_session_id text,
  p_amount bigint,
  p_currency text,
  p_reason text,
  p_captured_at timestamptz,
  p_now timestamptz)
returns flashsale.order_row
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_row flashsale.order_row;
begin
  update flashsale_data.payments p
  set captured_at = p_captured_at
  where p.payment_id = p_payment.payment_id;
  if p_reason = 'late' then
    v_row := flashsale.buy_late(p_payment.payment_id, p_order, p_session_id, p_now);
    insert into flashsale_data.outbox (type, order_id, at, data)
    select
      'order.paid', v_row.order_id, p_now,
      flashsale.paid_data(
        p_payment.payment_id, p_amount, p_currency, v_row.units, v_row.paid_at)
        || jsonb_build_object('late_for', p_order.order_id::text)
    where v_row.order_id is not null;
  end if;
  if v_row.order_id is null then
    v_row := flashsale.owe_refund(
      p_payment, p_session_id, p_amount, p_currency, p_reason, p_now);
    perform flashsale.end_settling(p_order.order_id, p_now);
  end if;
  return v_row;
end
$$;

comment on function flashsale.do_not_buy(
  flashsale_data.payments, flashsale_data.orders, text, bigint, text, text, timestamptz, timestamptz
) is
$$What becomes of money that does not buy its order
Late money may buy another order (buy_late). All other money is refunded. If the order is settling,
and this was the last session that could be paid, it expires.$$;

create or replace function flashsale.owe_refund(
  p_payment flashsale_data.payments,
  p_session_id text,
  p_amount bigint,
  p_currency text,
  p_reason text,
  p_now timestamptz)
returns flashsale.order_row
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
  update flashsale_data.payments p
  set
    status = 'refund_due', refund_reason = p_reason, amount = p_amount, currency = p_currency,
    session_id = p_session_id, ended_at = p_now, payable = false
  where p.payment_id = p_payment.payment_id
    and p.status in ('requested', 'open', 'failed', 'voided');
  perform flashsale.enqueue_payment_jobs('refund', array[p_payment.payment_id]);
  return flashsale.answer(p_payment.order_id, 'refund_due');
end
$$;

comment on function flashsale.owe_refund(
  flashsale_data.payments, text, bigint, text, text, timestamptz) is
$$Refunds money that can't be used
p_reason: wrong_amount, superseded, cancelled or late, as in payments.refund_reason. The payment's
amount becomes what came, because that is what is refunded.$$;

-- Money that comes after the deadline may buy units that are free while nobody waits. Money that
-- comes after a cancellation never does. It takes new tickets for that, like any request, so that
-- the line's arithmetic holds. Other requests may take the free units while this runs. Then a
-- ticket is above now_serving, no order is inserted, and fill finds the tickets as holes.
create or replace function flashsale.buy_late(
  p_payment_id bigint,
  p_late flashsale_data.orders,
  p_session_id text,
  p_now timestamptz)
returns flashsale.order_row
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_item flashsale_data.items;
  v_order_id bigint;
begin
  select i.* into v_item from flashsale_data.items i
  where i.item_id = p_late.item_id and i.late_payment = 'keep_if_free';
  if not found
    or p_late.status not in ('reserved', 'settling', 'expired')
    or flashsale.is_forgotten(p_late.customer_id) -- nobody would know of the order
    or flashsale.shut_by(v_item.opens_at, v_item.closes_at, v_item.paused, p_now) is not null
    or pg_sequence_last_value(v_item.line) + coalesce(p_late.units, 1) > v_item.now_serving
    or exists (
      select from flashsale_data.orders o
      where o.order_id between
          flashsale.order_id_of(v_item.item_id, 0)
          and flashsale.order_id_of(v_item.item_id, 2147483647)
        and o.status = 'waiting')
  then
    return null;
  end if;
  -- The hold that ended, if it has not been marked yet. It goes on if it settles and has another
  -- session that may have been paid in time.
  perform flashsale.expire_orders(array[p_late.order_id], p_now);
  perform flashsale.end_settling(p_late.order_id, p_now, p_payment_id);
  if exists (
    select from flashsale_data.orders o
    where o.order_id = p_late.order_id and o.ended_at is null)
  then
    return null;
  end if;
  v_order_id := flashsale.buy_anew(p_late, v_item, coalesce(p_late.units, 1), p_now);
  if v_order_id is null then
    return null;
  end if;
  update flashsale_data.payments p
  set
    status = 'succeeded', order_id = v_order_id, session_id = p_session_id, ended_at = p_now,
    payable = false
  where p.payment_id = p_payment_id
    and p.status in ('requested', 'open', 'failed', 'voided');
  update flashsale_data.orders o set late_order_id = v_order_id
  where o.order_id = p_late.order_id;
  perform flashsale.enqueue_mail('paid_late', array[v_order_id]);
  return flashsale.answer(v_order_id, 'paid');
end
$$;

comment on function flashsale.buy_late(bigint, flashsale_data.orders, text, timestamptz) is
$$Buys a new order with late money if its units are free and nobody waits
Returns null if not, or if the item's late_payment is not keep_if_free. The old order (p_late) then
names the new one. The caller has locked the old order and the payment, and read p_now after
that.$$;

create or replace function flashsale.buy_anew(
  p_late flashsale_data.orders,
  p_item flashsale_data.items,
  p_units integer,
  p_now timestamptz)
returns bigint
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_found record;
  v_order_id bigint;
begin
  if p_item.counts_units then -- the limits hold for late money too
    select * into v_found
    from flashsale.look_up_special(
      p_item.item_id, p_late.customer_id, null, null, true, p_units, p_units, p_now, null);
    if v_found.outcome is not null
      or v_found.order_id is not null and v_found.in_the_way is not true
    then
      return null;
    end if;
    perform flashsale.end_overdue(array[v_found.order_id]) where v_found.in_the_way;
  end if;
  with ticketed as materialized (
    select array(
      select nextval(p_item.line)::integer from generate_series(1, p_units)) as tickets
  ), bought as (
    insert into flashsale_data.orders (
      order_id, item_id, ticket, customer_id, status, created_at, reserved_at, expires_at, paid_at,
      product_id, quantity, units)
    select
      flashsale.order_id_of(p_item.item_id, t.tickets[1]), p_item.item_id, t.tickets[1],
      p_late.customer_id, 'paid', p_now, p_now,
      p_now + p_item.hold_seconds * interval '1 second', p_now, p_item.product_id,
      nullif(p_units, 1), nullif(p_units, 1)
    from ticketed t
    where t.tickets[p_units] <= p_item.now_serving -- else other requests were faster
    on conflict do nothing -- the customer has another order by now
    returning order_id, item_id
  ), parts as (
    insert into flashsale_data.orders (
      order_id, item_id, ticket, status, created_at, reserved_at, paid_at, head_id, product_id)
    select
      flashsale.order_id_of(b.item_id, n.ticket), b.item_id, n.ticket, 'paid', p_now, p_now, p_now,
      b.order_id, p_item.product_id
    from bought b
    cross join ticketed t
    cross join unnest(t.tickets[2:]) n (ticket)
  ), tallied as (
    insert into flashsale_data.tallies (item_id, paid, gaps_in_line)
    select b.item_id, p_units, 0 from bought b
  )
  select b.order_id into v_order_id from bought b;
  return v_order_id;
end
$$;

comment on function flashsale.buy_anew(
  flashsale_data.orders, flashsale_data.items, integer, timestamptz) is
$$Inserts the paid order that late money buys, with new tickets
Returns null if its customer has another order, or as many units as they may have, or if other
requests were faster.$$;

create or replace function flashsale.keep_stray(
  p_session_id text, p_amount bigint, p_currency text, p_now timestamptz)
returns flashsale.order_row
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_payment_id bigint;
  v_row flashsale.order_row;
begin
  insert into flashsale_data.payments (
    amount, currency, status, requested_at, ended_at, session_id, refund_reason)
  values (p_amount, p_currency, 'refund_due', p_now, p_now, p_session_id, 'stray')
  on conflict (session_id) where session_id is not null do nothing
  returning payment_id into v_payment_id;
  perform flashsale.enqueue_payment_jobs('refund', array[v_payment_id])
  where v_payment_id is not null;
  v_row.outcome := 'stray';
  v_row.amount := p_amount;
  v_row.currency := p_currency;
  return v_row;
end
$$;

comment on function flashsale.keep_stray(text, bigint, text, timestamptz) is
$$Keeps money that names no payment of ours, and has it refunded, once$$;
