-- Money. One function decides what money does, with the order locked and the clock read after that:
-- it buys the order, or it goes back. The order's change, the payment's row and the job that
-- follows commit together.
create function flashsale.pay(
  p_payment_id bigint, p_session_id text, p_amount bigint, p_currency text)
returns flashsale.order_row
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  -- A session is one piece of money: once we know it, it decides, whatever payment it names.
  v_payment_id constant bigint := coalesce(
    (select p.payment_id from flashsale_data.payments p where p.session_id = p_session_id),
    p_payment_id);
  v_payment flashsale_data.payments;
  v_order flashsale_data.orders;
  v_item flashsale_data.items;
  v_now timestamptz;
  v_reason text;
  v_row flashsale.order_row;
begin
  if coalesce(length(p_session_id) not between 1 and 255, true)
    or coalesce(p_amount < 0, true)
    or coalesce(p_currency !~ '^[A-Z]{3}$', true)
  then
    raise exception 'This is not a payment.' using
      errcode = 'RV303', constraint = 'bad_payment',
      detail = format('session %L, %s %s', p_session_id, p_amount, p_currency),
      hint = 'Pass the session (1 to 255 characters), the amount in minor units and the currency.';
  end if;

  -- Orders before payments, like everybody.
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
  v_now := flashsale.clock();

  if v_payment.payment_id is null or v_payment.session_id <> p_session_id then
    return flashsale.keep_stray(p_session_id, p_amount, p_currency, v_now);
  elsif v_payment.status in ('succeeded', 'refund_due', 'refunded') then
    v_row := flashsale.order_status(v_order.order_id);
    v_row.outcome := case v_payment.status
      when 'succeeded' then 'already_paid' else 'refund_due' end;
    return v_row;
  end if;

  v_reason := case
    when p_amount <> v_payment.amount or p_currency <> v_payment.currency then 'wrong_amount'
    when exists (
      select from flashsale_data.payments p
      where p.order_id = v_order.order_id and p.payment_id > v_payment.payment_id)
      then 'superseded'
    when v_order.status = 'paid' then 'superseded'
    when v_order.status <> 'reserved' or v_order.expires_at <= v_now then 'late'
  end;

  if v_reason = 'late' then
    select i.* into v_item from flashsale_data.items i
    where i.item_id = v_order.item_id and i.late_payment = 'keep_if_free';
    if v_item.item_id is not null then
      v_row := flashsale.buy_late(v_item, v_order, v_payment, v_now);
      if v_row.order_id is not null then
        v_reason := null;
      end if;
    end if;
  end if;

  if v_reason is not null then
    update flashsale_data.payments p
    set
      status = 'refund_due', refund_reason = v_reason, amount = p_amount, currency = p_currency,
      session_id = p_session_id, ended_at = v_now
    where p.payment_id = v_payment_id
      and p.status in ('requested', 'open', 'failed', 'voided');
    perform flashsale.enqueue_payment_jobs('refund', array[v_payment_id]);
    v_row := flashsale.order_status(v_order.order_id);
    v_row.outcome := 'refund_due';
    return v_row;
  end if;

  if v_row.order_id is null then -- in time
    with paid as (
      update flashsale_data.orders o
      set status = 'paid', paid_at = v_now
      where o.order_id = v_order.order_id
        and o.status = 'reserved'
        and o.expires_at > v_now
      returning o.order_id, o.item_id
    ), tallied as (
      insert into flashsale_data.tallies (item_id, paid, gaps_in_line)
      select p.item_id, 1, 0 from paid p
    )
    update flashsale_data.payments p
    set status = 'succeeded', session_id = p_session_id, ended_at = v_now
    from paid
    where p.payment_id = v_payment_id
      and p.order_id = paid.order_id
      and p.status in ('requested', 'open', 'failed', 'voided');
    v_row := flashsale.order_status(v_order.order_id);
  end if;
  perform flashsale.enqueue_mail('paid', array[v_row.order_id]);
  v_row.outcome := 'paid';
  return v_row;
end
$$;

comment on function flashsale.pay(bigint, text, bigint, text) is
$$Money has come for a payment: it buys the order, or it goes back
Paid if the order is reserved and its deadline, by the database's clock once the order is locked,
has not come. p_amount: minor units. Safe to call again: the same money decides once.
Outcomes: paid, already_paid, refund_due (late, superseded by a newer attempt, or not the amount
asked for), stray (names no payment of ours: kept as a payment without order, and refunded).
Errors: RV303 not a session, amount and currency.$$;

-- A unit that is free while nobody waits may go to late money: with a new ticket, like anybody.
create function flashsale.buy_late(
  p_item flashsale_data.items,
  p_order flashsale_data.orders,
  p_payment flashsale_data.payments,
  p_now timestamptz)
returns flashsale.order_row
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_order_id bigint;
  v_row flashsale.order_row;
begin
  if flashsale.shut_by(p_item.opens_at, p_item.closes_at, p_item.paused, p_now) is not null
    or pg_sequence_last_value(p_item.line) >= p_item.now_serving
    or exists (
      select from flashsale_data.orders o
      where o.order_id between
          flashsale.order_id_of(p_item.item_id, 0) and flashsale.order_id_of(p_item.item_id + 1, 0)
        and o.status = 'waiting')
  then
    return null;
  end if;
  -- The hold that ended, if no sweep has marked it yet.
  perform flashsale.expire_orders(array[p_order.order_id], p_now);
  with ticketed as materialized (
    select nextval(p_item.line)::integer as ticket
  ), bought as (
    insert into flashsale_data.orders (
      order_id, item_id, ticket, customer_id, status, created_at, reserved_at, expires_at, paid_at)
    select
      flashsale.order_id_of(p_item.item_id, t.ticket), p_item.item_id, t.ticket,
      p_order.customer_id, 'paid', p_now, p_now,
      p_now + p_item.hold_seconds * interval '1 second', p_now
    from ticketed t
    where t.ticket <= p_item.now_serving -- else customers were faster
    on conflict do nothing               -- the customer has another order by now
    returning order_id, item_id
  ), tallied as (
    insert into flashsale_data.tallies (item_id, paid, gaps_in_line)
    select b.item_id, 1, 0 from bought b
  )
  select b.order_id into v_order_id from bought b;
  if v_order_id is null then
    return null;
  end if;
  update flashsale_data.payments p
  set status = 'succeeded', order_id = v_order_id, ended_at = p_now
  where p.payment_id = p_payment.payment_id
    and p.status in ('requested', 'open', 'failed', 'voided');
  v_row := flashsale.order_status(v_order_id);
  return v_row;
end
$$;

comment on function flashsale.buy_late(
  flashsale_data.items, flashsale_data.orders, flashsale_data.payments, timestamptz) is
$$Late money buys a new order if a unit is free and nobody waits
Returns null if not. For items with late_payment = keep_if_free.$$;

create function flashsale.keep_stray(
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
