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

-- Events may come in any order. A refund says that there was money. So if nobody has told us of
-- that money yet, it comes now. Otherwise its own event would buy the order later, with money that
-- has gone back. The order is read after that, because until then late money may move to another
-- order (buy_late).
create or replace function flashsale.refunded_at_provider(
  p_payment_id bigint, p_session_id text, p_amount bigint)
returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_payment_id constant bigint := coalesce(
    (select p.payment_id from flashsale_data.payments p where p.session_id = p_session_id),
    p_payment_id);
  v_order_id bigint;
  v_now timestamptz;
begin
  if p_amount <> (
    select p.amount from flashsale_data.payments p where p.payment_id = v_payment_id)
  then
    return 'ignored'; -- a part: it neither refunds an order nor settles a refund that is due
  end if;
  perform flashsale.pay(p.payment_id, p_session_id, p.amount, p.currency)
  from flashsale_data.payments p
  where p.payment_id = v_payment_id
    and p.status in ('requested', 'open', 'failed', 'voided');
  v_order_id := (
    select p.order_id from flashsale_data.payments p where p.session_id = p_session_id);
  perform from flashsale_data.orders o where o.order_id = v_order_id for update;
  v_now := flashsale.clock();
  if exists (
    select from flashsale_data.payments p
    where p.session_id = p_session_id and p.order_id = v_order_id and p.status = 'succeeded')
  then
    perform flashsale.refund_paid(v_order_id, 'provider', v_now);
    perform flashsale.note_history(
      null, 'refund_at_provider', v_order_id, '{"status": "paid"}', '{"status": "refunded"}',
      format('The provider has refunded session %s.', p_session_id));
    return 'refunded';
  end if;
  return flashsale.settle_refund(p_payment_id, p_session_id);
end
$$;

comment on function flashsale.refunded_at_provider(bigint, text, bigint) is
$$Records that the provider says that it has refunded a session
If the money has bought an order, the order is refunded, and its unit goes back on sale. Money of
which nobody has told us before counts as coming now. A refund of a part of the money changes
nothing.
Returns refunded, or ignored.$$;
