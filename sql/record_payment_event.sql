create or replace function flashsale.record_payment_event(
  p_event_id text,
  p_type text,
  p_session_id text,
  p_payment_id text,
  p_amount bigint,
  p_currency text,
  p_occurred_at timestamptz)
returns text
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_payment_id constant bigint :=
    case when p_payment_id ~ '^[1-9][0-9]{0,17}$' then p_payment_id::bigint end;
  v_outcome text;
begin
  if (length(p_event_id) between 1 and 255 and length(p_type) between 1 and 255
      and length(p_session_id) between 1 and 255
      and coalesce(length(p_payment_id) <= 255, true)) is not true
  then
    raise exception 'This is not an event of a payment provider.' using
      errcode = 'RV303', constraint = 'bad_payment',
      detail = format('event %L, type %L, session %L', left(p_event_id, 255), left(p_type, 255),
        left(p_session_id, 255)),
      hint = 'Pass the event, its type, the session and the payment: at most 255 characters each.';
  end if;
  insert into flashsale_data.payment_events (
    event_id, type, session_id, payment_id, amount, currency, occurred_at, received_at)
  values (
    p_event_id, p_type, p_session_id, p_payment_id, p_amount, p_currency, p_occurred_at,
    flashsale.clock())
  on conflict (event_id) do nothing;
  if not found then
    return 'duplicate';
  end if;
  v_outcome := case p_type
    when 'payment.succeeded' then
      (flashsale.pay(v_payment_id, p_session_id, p_amount, p_currency)).outcome
    when 'payment.failed' then flashsale.end_payment(v_payment_id, p_session_id, 'failed')
    when 'payment.voided' then flashsale.end_payment(v_payment_id, p_session_id, 'voided')
    when 'payment.refunded' then flashsale.settle_refund(v_payment_id, p_session_id)
    else 'ignored'
  end;
  update flashsale_data.payment_events e
  set outcome = v_outcome
  where e.event_id = p_event_id;
  return v_outcome;
end
$$;

comment on function flashsale.record_payment_event(
  text, text, text, text, bigint, text, timestamptz) is
$$Stores an event of the payment provider, with its effect, once
p_event_id: the provider's name of the event; another event of that name is a duplicate. p_type:
payment.succeeded, payment.failed, payment.voided or payment.refunded; others are stored and
ignored. p_payment_id: as the provider sent it; money for a payment that we do not know is a stray.
p_amount: minor units of p_currency. p_occurred_at: by the provider's clock.
Outcomes: paid, already_paid, refund_due or stray (see pay); failed, voided or refunded; ignored;
duplicate. Errors: RV303 an event without event_id, type or session (each 1 to 255 characters), or
a success without amount or currency.$$;
