-- Money that a till has taken. It never came through the payment provider, so it has a reference of
-- the till instead of a session, and no job can refund it. A session that is still open may bring
-- money too, which goes back: the order is paid.
create or replace function flashsale.pay_offline(
  p_order_id bigint,
  p_reference text,
  p_staff text default null,
  p_reason text default null,
  p_idempotency_key text default null)
returns flashsale.order_row
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_order flashsale_data.orders;
  v_now timestamptz;
begin
  perform flashsale.check_act(p_staff, coalesce(p_reason, 'none'));
  perform flashsale.check_reference(p_reference);
  if flashsale.is_repeated('', p_idempotency_key, 'pay_offline',
    jsonb_build_object('order_id', p_order_id, 'reference', p_reference))
  then
    return flashsale.answer(p_order_id, 'repeated');
  end if;
  p_order_id := flashsale.lock_entry(p_order_id);
  perform flashsale.order_status(p_order_id);
  select o.* into v_order
  from flashsale_data.orders o where o.order_id = p_order_id for update;
  v_now := flashsale.clock();
  insert into flashsale_data.offline_references (reference, order_id)
  values (p_reference, p_order_id)
  on conflict do nothing;
  if not found then
    return flashsale.known_reference(p_order_id, p_reference);
  elsif v_order.status <> 'reserved' or v_order.expires_at <= v_now then
    perform flashsale.raise_not_reserved(flashsale.answer(p_order_id, null));
  end if;
  perform flashsale.first_payments(array[p_order_id]);
  with paid as (
    update flashsale_data.orders o
    set status = 'paid', paid_at = v_now
    where o.order_id = p_order_id and o.status = 'reserved'
    returning o.order_id, o.item_id, o.units
  ), tallied as (
    insert into flashsale_data.tallies (item_id, paid, gaps_in_line)
    select p.item_id, coalesce(p.units, 1), 0 from paid p
  )
  insert into flashsale_data.payments (
    order_id, amount, currency, status, requested_at, ended_at, captured_at, reference)
  select
    p.order_id, i.price * coalesce(p.units, 1), i.currency, 'succeeded', v_now, v_now, v_now,
    p_reference
  from paid p
  join flashsale_data.items i on i.item_id = p.item_id;
  perform flashsale.parts_follow(array[p_order_id]) where v_order.quantity > 1;
  perform
    flashsale.enqueue_voids(array[p_order_id]),
    flashsale.enqueue_mail('paid', array[p_order_id]),
    flashsale.note_paid_offline(p_order_id, p_reference),
    flashsale.note_history(
      coalesce(p_staff, session_user), 'pay_offline', p_order_id, '{"status": "reserved"}',
      jsonb_build_object('status', 'paid', 'reference', p_reference), p_reason);
  return flashsale.answer(p_order_id, 'paid');
end
$$;

comment on function flashsale.pay_offline(bigint, text, text, text, text) is
$$Records that a till has taken the money for a reserved order
p_reference: the till's own name of this payment, 1 to 255 characters, unique: the same call again
changes nothing. p_staff: who, for history, 1 to 128 characters; null: the login. p_reason: why, 1
to 1,000 characters or null. p_idempotency_key: 1 to 255 characters or null. The order's open
sessions are voided, and money that comes through them goes back.
Outcomes: paid; already_paid (by this reference); repeated (with this key: the order as it is now).
Errors: RV102 unknown order, RV203 it is not reserved, or its deadline has passed, RV206 the
reference is another payment's, RV302 a reference, a name, a reason or a key that is too short or
too long, RV304 the key was used for another request.$$;

create or replace function flashsale.check_reference(p_reference text) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
  if flashsale.is_text(p_reference, 255) is not true then
    raise exception 'A payment at a till needs a reference.' using
      errcode = 'RV302', constraint = 'bad_value',
      detail = format('a reference of %s characters', coalesce(length(p_reference), 0)),
      hint = 'Pass the till''s own name of this payment: 1 to 255 characters, and no control '
        'characters.';
  end if;
end
$$;

comment on function flashsale.check_reference(text) is
$$Raises RV302 if this can't be a till's name of a payment$$;

create or replace function flashsale.note_paid_offline(p_order_id bigint, p_reference text)
returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
begin
  insert into flashsale_data.outbox (type, order_id, at, data)
  select
    'order.paid', p.order_id, p.captured_at,
    flashsale.paid_data(null, p.amount, p.currency, o.units, p.captured_at)
      || jsonb_build_object('reference', p_reference)
  from flashsale_data.payments p
  join flashsale_data.orders o on o.order_id = p.order_id
  where p.order_id = p_order_id and p.reference = p_reference;
end
$$;

comment on function flashsale.note_paid_offline(bigint, text) is
$$Tells the feed of an order that a till has taken the money for$$;

create or replace function flashsale.known_reference(p_order_id bigint, p_reference text)
returns flashsale.order_row
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
  v_row flashsale.order_row;
begin
  if not exists (
    select from flashsale_data.offline_references r
    where r.reference = p_reference and r.order_id = p_order_id)
  then
    raise exception 'This reference belongs to the payment of another order.' using
      errcode = 'RV206', constraint = 'reference_taken',
      detail = format('reference %L', p_reference),
      hint = 'Pass the reference of this payment. If the till has taken the money for the wrong '
        'order, refund that order.';
  end if;
  v_row := flashsale.answer(p_order_id, 'already_paid');
  if v_row.status <> 'paid' then
    perform flashsale.raise_not_reserved(v_row);
  end if;
  return v_row;
end
$$;

comment on function flashsale.known_reference(bigint, text) is
$$The answer about a reference that has been used before
Errors: RV206 for another order, RV203 the order was refunded since.$$;
