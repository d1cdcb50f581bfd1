create or replace function flashsale.payment_captured(
  p_job_id bigint, p_tries integer, p_payment_id bigint, p_session_id text, p_amount bigint,
  p_currency text, p_captured_at timestamptz default null)
returns text
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_outcome text;
begin
  if flashsale.is_busy(p_payment_id, true) then
    return flashsale.put_off(p_job_id, p_tries);
  end if;
  v_outcome := (
    flashsale.pay(p_payment_id, p_session_id, p_amount, p_currency, p_captured_at)).outcome;
  return flashsale.finish_job(p_job_id, p_tries, v_outcome);
end
$$;

comment on function flashsale.payment_captured(
  bigint, integer, bigint, text, bigint, text, timestamptz) is
$$Records money that came before its session could be voided, like pay
p_job_id and p_tries: the lease. p_session_id, p_amount, p_currency and p_captured_at: the money, as
for pay; null: it came now.
Outcomes: those of pay; busy and lost_lease, as of payment_opened.
Errors: RV303 not a session, amount and currency.$$;
