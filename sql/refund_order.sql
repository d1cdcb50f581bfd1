-- Refunds of paid orders: by staff (refund_order), by the customer (cancel) and at the provider
-- (record_payment_event). Each ends in `refunded`, once. The order's ticket becomes a forfeit like
-- that of any order that ended without a sale, so that its unit goes to the line. If the unit is to
-- stay off sale, that forfeit is swallowed, as if an operator had withdrawn the unit.
create or replace function flashsale.refund_order(
  p_order_id bigint,
  p_reason text,
  p_return_units boolean default true,
  p_staff text default null,
  p_idempotency_key text default null)
returns flashsale.order_row
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_status flashsale_data.order_status;
  v_units integer;
  v_now timestamptz;
begin
  perform flashsale.check_act(p_staff, p_reason);
  if flashsale.is_repeated('', p_idempotency_key, 'refund_order', jsonb_build_object(
    'order_id', p_order_id, 'reason', p_reason, 'return_units', p_return_units is not false))
  then
    return flashsale.answer(p_order_id, 'repeated');
  end if;
  p_order_id := flashsale.current_id(p_order_id); -- an entry that is not drawn is not paid
  perform flashsale.order_status(p_order_id);
  if p_return_units is false then -- items are locked before orders
    perform flashsale.lock_item(flashsale.item_of(p_order_id));
  end if;
  select o.status, coalesce(o.units, 1) into v_status, v_units
  from flashsale_data.orders o where o.order_id = p_order_id for update;
  v_now := flashsale.clock();
  if v_status = 'refunded' then
    return flashsale.answer(p_order_id, 'already_refunded');
  elsif v_status is distinct from 'paid' then
    raise exception 'Only a paid order can be refunded; this one is %.', v_status using
      errcode = 'RV207', constraint = 'not_paid', detail = format('order_id %s', p_order_id),
      hint = 'Money that could not be used is refunded by itself.';
  end if;
  if p_return_units is false then
    update flashsale_data.items i
    set withdrawing = least(i.stock, i.withdrawing + v_units)
    where i.item_id = flashsale.item_of(p_order_id);
  end if;
  perform flashsale.refund_paid(p_order_id, 'staff', v_now);
  perform flashsale.note_history(
    coalesce(p_staff, session_user), 'refund_order', p_order_id, '{"status": "paid"}',
    jsonb_build_object('status', 'refunded', 'return_units', p_return_units is not false),
    p_reason);
  return flashsale.answer(p_order_id, 'refunded');
end
$$;

comment on function flashsale.refund_order(bigint, text, boolean, text, text) is
$$Refunds a paid order, for staff; its units go to the line or off sale
p_reason: why, for history, 1 to 1,000 characters. p_return_units: false keeps them off sale.
p_staff: who, for history, 1 to 128 characters; null: the login. The money goes back through the
payment provider; money of an offline payment has to be paid out at the till. p_idempotency_key: 1
to 255 characters or null.
Outcomes: refunded; already_refunded (nothing changes); repeated (with this key: the order as it is
now).
Errors: RV102 unknown order, RV207 it is not paid, RV302 a reason, a name or a key that is too short
or too long, RV304 the key was used for another request.$$;

create or replace function flashsale.refund_paid(
  p_order_id bigint, p_reason text, p_now timestamptz)
returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_payment_id bigint;
  v_status flashsale_data.payment_status;
  v_is_group boolean;
begin
  with refunded as (
    update flashsale_data.orders o
    set status = 'refunded', ended_at = greatest(p_now, o.paid_at) -- also if the clock stepped back
    where o.order_id = p_order_id and o.status = 'paid'
    returning o.order_id, o.item_id, o.quantity, o.units
  ), tallied as (
    insert into flashsale_data.tallies (item_id, paid, gaps_in_line)
    select r.item_id, -coalesce(r.units, 1), 0 from refunded r
  ), noted as (
    insert into flashsale_data.outbox (type, order_id, at, data)
    select
      'order.refunded', r.order_id, p_now,
      jsonb_build_object('by', p_reason, 'units', coalesce(r.units, 1))
    from refunded r
  )
  update flashsale_data.payments p
  set
    status = d.status, refund_reason = p_reason,
    refunded_at = case when d.status = 'refunded' then p_now end
  from flashsale_data.payments s
  cross join refunded
  cross join lateral (
    select case
      when p_reason = 'provider' or s.reference is not null then 'refunded'
      else 'refund_due'
    end::flashsale_data.payment_status as status
  ) d
  where p.payment_id = s.payment_id and s.order_id = p_order_id and s.status = 'succeeded'
  returning p.payment_id, p.status, refunded.quantity > 1 into v_payment_id, v_status, v_is_group;
  if v_is_group then
    perform flashsale.parts_follow(array[p_order_id]);
  end if;
  if v_status = 'refund_due' then
    perform flashsale.enqueue_payment_jobs('refund', array[v_payment_id]);
  elsif v_status = 'refunded' then
    perform flashsale.enqueue_mail('order_refunded', array[p_order_id]);
  end if;
end
$$;

comment on function flashsale.refund_paid(bigint, text, timestamptz) is
$$Refunds a paid order, once
p_reason: staff, customer or provider, as in payments.refund_reason. The caller has locked the order
and read p_now after that. The customer gets an e-mail when the money has gone back.$$;
