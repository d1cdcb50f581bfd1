create or replace function flashsale.end_payment(
  p_payment_id bigint, p_session_id text, p_status text, p_payable boolean default false)
returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_order_id constant bigint := coalesce(
    (select p.order_id from flashsale_data.payments p where p.payment_id = p_payment_id),
    p_payment_id);
begin
  -- The order is locked before its payment, as everywhere, unless it is back in the line: then this
  -- attempt is over, and promote would leave a locked order out.
  perform from flashsale_data.orders o
  where o.order_id = v_order_id and o.status <> 'waiting'
  for update;
  perform flashsale.first_payments(array[p_payment_id]);
  update flashsale_data.payments p
  set
    status = p_status::flashsale_data.payment_status,
    payable = p_payable,
    session_id = coalesce(p.session_id, p_session_id),
    ended_at = flashsale.clock()
  where p.payment_id = p_payment_id
    and (p.status in ('requested', 'open')
      or p.status = 'failed' and (p.payable or p_status = 'voided'))
    and coalesce(p.session_id, p_session_id) = p_session_id
    and not exists (
      select from flashsale_data.payments q
      where q.session_id = p_session_id and q.payment_id <> p.payment_id);
  if not found then
    return 'ignored';
  end if;
  perform flashsale.end_settling(v_order_id, flashsale.clock());
  -- We may not have known of this session when the hold ended.
  perform flashsale.enqueue_voids(array[o.order_id])
  from flashsale_data.orders o
  where o.order_id = v_order_id and p_payable and o.status <> 'reserved';
  return p_status;
end
$$;

comment on function flashsale.end_payment(bigint, text, text, boolean) is
$$Ends a payment attempt without money: failed or voided, else ignored
p_payable: it has failed, but the customer may still pay in its session. If its order is settling,
and no other session can be paid, the order expires.$$;
