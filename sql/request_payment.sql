create or replace function flashsale.request_payment(
  p_order_id bigint, p_customer_id text default null, p_idempotency_key text default null)
returns flashsale.order_row
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_row flashsale.order_row;
  v_payment_id bigint;
begin
  if flashsale.is_repeated(coalesce(p_customer_id, ''), p_idempotency_key, 'request_payment',
    jsonb_build_object('order_id', p_order_id))
  then
    return flashsale.answer(p_order_id, 'repeated');
  end if;
  p_order_id := flashsale.lock_entry(p_order_id);
  perform from flashsale_data.orders o
  where o.order_id = p_order_id
    and (o.customer_id = p_customer_id or p_customer_id is null)
  for update;
  v_row := flashsale.order_status(p_order_id, p_customer_id);
  if v_row.status <> 'reserved' then
    perform flashsale.raise_not_reserved(v_row);
  end if;
  if v_row.payment_status in ('requested', 'open') then
    v_row.outcome := 'existing';
    return v_row;
  end if;
  insert into flashsale_data.payments (order_id, amount, currency, requested_at)
  select p_order_id, i.price * v_row.units, i.currency, flashsale.clock()
  from flashsale_data.items i
  where i.item_id = v_row.item_id
  returning payment_id into v_payment_id;
  perform flashsale.enqueue_payment_jobs('open', array[v_payment_id]);
  return flashsale.answer(p_order_id, 'requested');
end
$$;

comment on function flashsale.request_payment(bigint, text, text) is
$$Starts another payment attempt for a reserved order after one failed
The deadline stays as it is. p_customer_id: the order's customer; null for any customer's order.
p_idempotency_key: 1 to 255 characters; the same call with the same key starts one attempt.
Outcomes: requested; existing (an attempt is under way); repeated (with this key: the order as it is
now).
Errors: RV102 unknown order, or another customer's; RV203 the order is not reserved, RV302 a key
that is too short or too long, RV304 the key was used for another request.$$;

create or replace function flashsale.raise_not_reserved(p_order flashsale.order_row) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'Only a reserved order can be paid; this one is %.', p_order.status using
    errcode = 'RV203', constraint = 'not_reserved',
    detail = format('order_id %s', p_order.order_id),
    hint = case p_order.status
      when 'waiting' then 'Wait for your turn.'
      when 'settling' then 'The deadline has passed. Whether money came in time is being asked.'
      when 'paid' then 'It is paid.'
      else 'Ask for a new order.' end;
end
$$;

comment on function flashsale.raise_not_reserved(flashsale.order_row) is
$$Raises RV203: this order can't be paid$$;
