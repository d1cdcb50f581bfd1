create or replace function flashsale.payment_voided(
  p_job_id bigint, p_tries integer, p_payment_id bigint)
returns text
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_outcome text;
begin
  if flashsale.is_busy(p_payment_id) then
    return flashsale.put_off(p_job_id, p_tries);
  end if;
  v_outcome := flashsale.end_payment(
    p_payment_id,
    (select p.session_id from flashsale_data.payments p where p.payment_id = p_payment_id),
    'voided');
  return flashsale.finish_job(p_job_id, p_tries, v_outcome);
end
$$;

comment on function flashsale.payment_voided(bigint, integer, bigint) is
$$Records that the provider has voided a session: no money will come
p_job_id and p_tries: the lease. Outcomes: voided; ignored (it was known already); busy and
lost_lease, as of payment_opened.$$;
