create or replace function flashsale.settle_refund(p_payment_id bigint, p_session_id text)
returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_order_id bigint;
begin
  update flashsale_data.payments p
  set status = 'refunded'
  where p.payment_id = (
      select q.payment_id from flashsale_data.payments q where q.session_id = p_session_id)
    and (p.payment_id = p_payment_id or p.order_id is null)
    and p.status = 'refund_due'
  returning p.order_id into v_order_id;
  if not found then
    return 'ignored';
  end if;
  perform flashsale.enqueue_mail('refunded', array[v_order_id]) where v_order_id is not null;
  return 'refunded';
end
$$;

comment on function flashsale.settle_refund(bigint, text) is
$$Records that a refund was paid out: refund_due becomes refunded, once
Returns refunded, or ignored.$$;
