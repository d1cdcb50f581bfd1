-- A refund is paid out by the provider after a call of ours, or at the provider by somebody who has
-- an account there. The latter may also be of an order that is paid: then the order is refunded.
create or replace function flashsale.settle_refund(p_payment_id bigint, p_session_id text)
returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_order_id bigint;
  v_reason text;
begin
  update flashsale_data.payments p
  set status = 'refunded', refunded_at = flashsale.clock()
  where p.payment_id = (
      select q.payment_id from flashsale_data.payments q where q.session_id = p_session_id)
    and (p.payment_id = p_payment_id or p.order_id is null)
    and p.status = 'refund_due'
  returning p.order_id, p.refund_reason into v_order_id, v_reason;
  if not found then
    return 'ignored';
  end if;
  perform flashsale.enqueue_mail(
    case when v_reason in ('staff', 'customer') then 'order_refunded' else 'refunded' end,
    array[v_order_id])
  where v_order_id is not null;
  return 'refunded';
end
$$;

comment on function flashsale.settle_refund(bigint, text) is
$$Records that a refund was paid out: refund_due becomes refunded, once
Returns refunded, or ignored.$$;

-- Events may come out of order. A refund tells that the money had come, so the money is recorded
-- first; the event that tells of it then finds that it has had its effect.
create or replace function flashsale.refunded_at_provider(
  p_payment_id bigint,
  p_session_id text,
  p_amount bigint,
  p_currency text,
  p_occurred_at timestamptz)
returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_payment flashsale_data.payments;
  v_now timestamptz;
begin
  select p.* into v_payment
  from flashsale_data.payments p
  where p.session_id = p_session_id or p.payment_id = p_payment_id and p.session_id is null
  order by p.session_id
  limit 1;
  perform from flashsale_data.orders o where o.order_id = v_payment.order_id for update;
  v_now := flashsale.clock();
  select p.* into v_payment
  from flashsale_data.payments p where p.payment_id = v_payment.payment_id;
  if p_amount <> v_payment.amount then
    return 'ignored';
  elsif v_payment.status in ('requested', 'open', 'failed', 'voided')
    and v_payment.currency = p_currency and p_amount is not null
  then
    perform flashsale.pay(
      v_payment.payment_id, p_session_id, p_amount, p_currency, p_occurred_at);
    return flashsale.refunded_at_provider(
      v_payment.payment_id, p_session_id, p_amount, p_currency, p_occurred_at);
  elsif v_payment.status = 'succeeded' and v_payment.session_id = p_session_id then
    perform flashsale.refund_paid(v_payment.order_id, 'provider', v_now);
    perform flashsale.note_history(
      null, 'refund_at_provider', v_payment.order_id, '{"status": "paid"}',
      '{"status": "refunded"}',
      format('The provider has refunded session %s.', p_session_id));
    return 'refunded';
  end if;
  return flashsale.settle_refund(p_payment_id, p_session_id);
end
$$;

comment on function flashsale.refunded_at_provider(bigint, text, bigint, text, timestamptz) is
$$Records that the provider says that it has refunded a session
If the money has bought an order, the order is refunded, and its unit goes back on sale. If we had
not heard of the money yet, it is recorded first. A refund of a part of the money changes nothing.
Returns refunded, or ignored.$$;
