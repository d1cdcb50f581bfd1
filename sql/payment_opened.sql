create or replace function flashsale.payment_opened(
  p_job_id bigint, p_tries integer, p_payment_id bigint, p_session_id text, p_checkout_url text)
returns text
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_order flashsale_data.orders;
  v_outcome text := 'ignored';
begin
  if flashsale.is_busy(p_payment_id) then
    return flashsale.put_off(p_job_id, p_tries);
  end if;
  -- Both are locked now. So the hold ends either before this or after it.
  select o.* into v_order
  from flashsale_data.orders o
  where o.order_id = (
    select p.order_id from flashsale_data.payments p where p.payment_id = p_payment_id);
  update flashsale_data.payments p
  set
    status = 'open', session_id = p_session_id, checkout_url = p_checkout_url,
    opened_at = flashsale.clock()
  where p.payment_id = p_payment_id and p.status = 'requested';
  if found and v_order.status = 'reserved' and v_order.expires_at > flashsale.clock() then
    v_outcome := 'opened';
    perform flashsale.enqueue_mail(
      case when v_order.reserved_at > v_order.created_at then 'your_turn' else 'reserved' end,
      array[v_order.order_id]);
  elsif found then
    v_outcome := 'superseded';
    perform flashsale.enqueue_payment_jobs('void', array[p_payment_id]);
  end if;
  return flashsale.finish_job(p_job_id, p_tries, v_outcome);
end
$$;

comment on function flashsale.payment_opened(bigint, integer, bigint, text, text) is
$$Records that the provider has opened a session to pay in
p_job_id and p_tries: the lease. p_session_id: the provider's name for the attempt. p_checkout_url:
where the customer pays.
Outcomes: opened (the customer gets an e-mail); superseded (the hold is over: the session is
voided); ignored (it was known already); busy (another transaction has locked the order: nothing was
recorded, and the job is put off); lost_lease (the lease is not the caller's any more; what it knows
is recorded, unless the order is locked).$$;
