create or replace function flashsale.cancel(
  p_order_id bigint, p_customer_id text default null, p_idempotency_key text default null,
  p_reason text default null, p_staff text default null)
returns flashsale.order_row
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_row flashsale.order_row;
  v_before flashsale_data.order_status;
  v_now timestamptz;
  v_cancelled bigint[];
  v_held bigint; -- the order, if it has ever held a unit
  v_group bigint[]; -- the order, if it is for several units
begin
  perform flashsale.check_act(p_staff, coalesce(p_reason, 'none'));
  if flashsale.is_repeated(coalesce(p_customer_id, ''), p_idempotency_key, 'cancel',
    jsonb_build_object('order_id', p_order_id))
  then
    return flashsale.answer(p_order_id, 'repeated');
  end if;
  p_order_id := flashsale.lock_entry(p_order_id);
  select o.status into v_before
  from flashsale_data.orders o
  where o.order_id = p_order_id and o.head_id is null
    and (o.customer_id = p_customer_id or p_customer_id is null)
  for update;
  v_now := flashsale.clock();
  with cancelled as (
    update flashsale_data.orders o
    set status = 'cancelled', ended_at = v_now
    where o.order_id = p_order_id and o.head_id is null
      and (o.customer_id = p_customer_id or p_customer_id is null)
      and (o.status in ('entered', 'waiting') or o.status = 'reserved' and (
        o.expires_at > v_now or flashsale.hold_fate(o.order_id) = 'waiting'))
    returning o.order_id, o.item_id, o.reserved_at, o.quantity
  ), tallied as (
    insert into flashsale_data.tallies (item_id, paid, gaps_in_line, entered)
    select t.* from cancelled c, flashsale.tally_of_cancelled(
      c.order_id, c.reserved_at, c.quantity) t
  )
  select
    array_agg(c.order_id), max(c.order_id) filter (where c.reserved_at is not null),
    array_agg(c.order_id) filter (where c.quantity > 1)
  into v_cancelled, v_held, v_group
  from cancelled c;
  perform flashsale.parts_follow(v_group) where v_group is not null;
  v_row := flashsale.order_status(p_order_id, p_customer_id);
  if v_cancelled is not null then
    perform flashsale.enqueue_voids(array[v_held]) where v_held is not null;
    perform flashsale.enqueue_mail('cancelled', v_cancelled),
      flashsale.note_orders('order.cancelled', v_cancelled, v_now);
    perform flashsale.note_history( -- a customer's own doing is not history
      coalesce(p_staff, session_user), 'cancel', p_order_id, jsonb_build_object('status', v_before),
      '{"status": "cancelled"}', p_reason) where p_customer_id is null;
    v_row.outcome := 'cancelled';
    return v_row;
  elsif v_row.status = 'paid' and flashsale.may_give_back(p_order_id, p_customer_id, v_now) then
    perform flashsale.refund_paid(p_order_id, 'customer', v_now);
    return flashsale.answer(p_order_id, 'refunded');
  elsif v_row.status = 'paid' then
    raise exception 'This order is paid and can''t be cancelled.' using
      errcode = 'RV202', constraint = 'already_paid', detail = format('order_id %s', p_order_id),
      hint = 'It can be given back within refund_seconds, if not paid at a till. Staff refund it.';
  end if;
  v_row.outcome := case v_row.status when 'settling' then 'settling' else 'already_ended' end;
  return v_row;
end
$$;

comment on function flashsale.cancel(bigint, text, text, text, text) is
$$Cancels an order; its units go to the next customers in the line
p_customer_id: the order's customer; null for any customer's order. A paid order is refunded, if its
customer asks for that within the item's refund_seconds, and if it was not paid at a till.
p_idempotency_key: 1 to 255 characters or null. p_reason and p_staff: why, 1 to 1,000 characters,
and who, 1 to 128, for history, which has what is done without p_customer_id; null: no reason, and
the login.
Outcomes: cancelled; refunded; already_ended (it was cancelled, expired, unserved or refunded
before: nothing changes); settling (the deadline has passed, and the payment provider is being asked
whether the money came in time: nothing changes); repeated (with this key: the order as it is now).
Errors: RV102 unknown order, or another customer's; RV202 already paid, RV302 a key, a reason or a
name that is too short or too long, RV304 the key was used for another request.$$;

-- This has no settings, so that it is inlined.
create or replace function flashsale.tally_of_cancelled(
  p_order_id bigint, p_reserved_at timestamptz, p_quantity integer)
returns table (item_id integer, paid integer, gaps_in_line integer, entered integer)
language sql immutable rows 1
as $$
  select
    flashsale.item_of(p_order_id), 0,
    case when flashsale.is_entry(p_order_id) then 0 else coalesce(p_quantity, 1) end,
    case when flashsale.is_entry(p_order_id) then -1 else 0 end
  where p_reserved_at is null
$$;

comment on function flashsale.tally_of_cancelled(bigint, timestamptz, integer) is
$$What the cancellation of an order changes of the item's counters
An entry has no tickets in the line. No row: the order has held a unit.$$;

create or replace function flashsale.may_give_back(
  p_order_id bigint, p_customer_id text, p_now timestamptz)
returns boolean
language sql stable set search_path = pg_catalog, pg_temp
as $$
  select exists (
    select from flashsale_data.orders o
    join flashsale_data.items i on i.item_id = o.item_id
    where o.order_id = p_order_id and o.customer_id = p_customer_id
      and p_now < o.paid_at + i.refund_seconds * interval '1 second')
  and not exists (
    select from flashsale_data.payments p
    where p.order_id = p_order_id and p.status = 'succeeded' and p.reference is not null)
$$;

comment on function flashsale.may_give_back(bigint, text, timestamptz) is
$$Whether a customer may give a paid order back: it is theirs, in time
What a till has taken, the till has to pay out: that is for staff.$$;
