create or replace function flashsale.end_payment(
  p_payment_id bigint, p_session_id text, p_status text)
returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
  -- The order is locked before its payment, as everywhere.
  perform from flashsale_data.orders o
  where o.order_id = coalesce(
    (select p.order_id from flashsale_data.payments p where p.payment_id = p_payment_id),
    p_payment_id)
  for update;
  perform flashsale.first_payments(array[p_payment_id]);
  update flashsale_data.payments p
  set
    status = p_status::flashsale_data.payment_status,
    session_id = coalesce(p.session_id, p_session_id),
    ended_at = flashsale.clock()
  where p.payment_id = p_payment_id
    and p.status in ('requested', 'open')
    and coalesce(p.session_id, p_session_id) = p_session_id
    and not exists (
      select from flashsale_data.payments q
      where q.session_id = p_session_id and q.payment_id <> p.payment_id);
  return case when found then p_status else 'ignored' end;
end
$$;

comment on function flashsale.end_payment(bigint, text, text) is
$$Ends a payment attempt without money: failed or voided, else ignored$$;
