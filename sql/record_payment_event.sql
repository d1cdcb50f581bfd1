-- The payment provider's events. An event is stored before it is judged, in one transaction with
-- its effect. Whatever a provider may send is stored: what we can't use is kept as `unusable`, with
-- its payload, and shown in the view unusable_event. An error would make the provider send it again
-- for some days, and then forget it, with the money that it was about.
create or replace function flashsale.record_payment_event(
  p_event_id text,
  p_type text,
  p_session_id text,
  p_payment_id text,
  p_amount bigint,
  p_currency text,
  p_occurred_at timestamptz,
  p_payload text default null,
  p_payable boolean default null)
returns text
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_event_id constant text := flashsale.name_of_event(
    p_event_id, concat_ws(' ', p_payload, p_event_id, p_type, p_session_id, p_payment_id));
  v_payment_id constant bigint :=
    case when p_payment_id ~ '^[1-9][0-9]{0,17}$' then p_payment_id::bigint end;
  v_is_usable constant boolean := flashsale.is_event(
    p_event_id, p_type, p_session_id, p_payment_id, p_amount, p_currency);
  v_outcome text;
begin
  insert into flashsale_data.payment_events (
    event_id, type, session_id, payment_id, amount, currency, occurred_at, received_at, payload)
  values (
    v_event_id, left(p_type, 255), left(p_session_id, 255), left(p_payment_id, 255), p_amount,
    left(p_currency, 255), p_occurred_at, flashsale.clock(),
    case when not v_is_usable then left(p_payload, 65536) end)
  on conflict (event_id) do nothing;
  if not found then
    return 'duplicate';
  end if;
  v_outcome := case
    when not v_is_usable then 'unusable'
    when p_type = 'payment.succeeded' then
      (flashsale.pay(v_payment_id, p_session_id, p_amount, p_currency, p_occurred_at)).outcome
    when p_type = 'payment.failed' then
      flashsale.end_payment(v_payment_id, p_session_id, 'failed', coalesce(p_payable, false))
    when p_type = 'payment.voided' then
      flashsale.end_payment(v_payment_id, p_session_id, 'voided')
    when p_type = 'payment.refunded' then
      flashsale.refunded_at_provider(v_payment_id, p_session_id, p_amount)
    else 'ignored'
  end;
  update flashsale_data.payment_events e
  set outcome = v_outcome
  where e.event_id = v_event_id;
  return v_outcome;
end
$$;

comment on function flashsale.record_payment_event(
  text, text, text, text, bigint, text, timestamptz, text, boolean) is
$$Stores an event of the payment provider, with its effect, once
p_event_id: the provider's name of the event; another event of that name is a duplicate. Without one
(1 to 255 characters) it gets a name that is made from its content. p_type: payment.succeeded,
payment.failed, payment.voided or payment.refunded; others are stored and ignored. p_payment_id: as
the provider sent it; money for a payment that we do not know is a stray. p_amount: minor units of
p_currency. p_occurred_at: by the provider's clock; when the money came, if that can be.
p_payload: the event as it came, of which 65,536 characters are kept if it is unusable. p_payable:
of a failed payment, whether the customer may still pay in its session.
Outcomes: paid, already_paid, refund_due or stray (see pay); failed, voided or refunded; ignored;
duplicate; unusable (an event of a known type without its session, or money without an amount of 1
to 10^15 or a currency of three capital letters: it is kept, and has no effect).$$;

-- These two have no settings, so that they are inlined.
create or replace function flashsale.name_of_event(p_event_id text, p_content text) returns text
language sql stable parallel safe -- as convert_to is
as $$
  select case
    when length(p_event_id) between 1 and 255 then p_event_id
    else 'sha256:' || encode(sha256(convert_to(p_content, 'UTF8')), 'hex')
  end
$$;

comment on function flashsale.name_of_event(text, text) is
$$The name of an event: the provider's, or one that its content makes$$;

create or replace function flashsale.is_event(
  p_event_id text,
  p_type text,
  p_session_id text,
  p_payment_id text,
  p_amount bigint,
  p_currency text)
returns boolean
language sql immutable parallel safe
as $$
  select case
    when p_type in ('payment.succeeded', 'payment.failed', 'payment.voided', 'payment.refunded')
    then flashsale.is_text(p_session_id, 255)
      and coalesce(length(p_payment_id) <= 255, true)
      and (p_type <> 'payment.succeeded'
        or p_amount between 1 and 1000000000000000 and p_currency ~ '^[A-Z]{3}$')
    else flashsale.is_text(p_type, 255) and length(p_event_id) between 1 and 255
  end is true
$$;

comment on function flashsale.is_event(text, text, text, text, bigint, text) is
$$Whether an event says enough to be used, or to be ignored$$;
