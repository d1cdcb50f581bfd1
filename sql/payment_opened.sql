create or replace function flashsale.payment_opened(
  p_job_id bigint, p_tries integer, p_payment_id bigint, p_session_id text, p_checkout_url text)
returns text
language sql volatile security definer set search_path = pg_catalog, pg_temp
as $$
  select o.outcome
  from flashsale.payments_opened(
    array[p_job_id], array[p_tries], array[p_payment_id], array[p_session_id],
    array[p_checkout_url]) o
$$;

comment on function flashsale.payment_opened(bigint, integer, bigint, text, text) is
$$Records that the provider has opened a session to pay in
p_job_id and p_tries: the lease. p_session_id: the provider's name for the attempt. p_checkout_url:
where the customer pays.
Outcomes: opened (the customer gets an e-mail); superseded (the hold is over: the session is
voided); ignored (it was known already); busy (another transaction has locked the order: nothing was
recorded, and the job is put off); lost_lease (the lease is not the caller's any more; what it knows
is recorded, unless the order is locked).$$;
