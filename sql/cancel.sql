create or replace function flashsale.cancel(p_order_id bigint, p_customer_id text default null)
returns flashsale.order_row
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_row flashsale.order_row;
  v_now timestamptz;
  v_cancelled bigint[];
begin
  perform from flashsale_data.orders o
  where o.order_id = p_order_id
    and (o.customer_id = p_customer_id or p_customer_id is null)
  for update;
  v_now := flashsale.clock();
  with cancelled as (
    update flashsale_data.orders o
    set status = 'cancelled', ended_at = v_now
    where o.order_id = p_order_id
      and (o.customer_id = p_customer_id or p_customer_id is null)
      and (o.status = 'waiting' or o.status = 'reserved' and o.expires_at > v_now)
    returning o.order_id, o.item_id, o.reserved_at
  ), tallied as (
    insert into flashsale_data.tallies (item_id, paid, gaps_in_line)
    select c.item_id, 0, 1 from cancelled c where c.reserved_at is null
  )
  select array_agg(c.order_id) into v_cancelled from cancelled c;
  v_row := flashsale.order_status(p_order_id, p_customer_id);
  if v_cancelled is not null then
    perform
      flashsale.void_payments_of(v_cancelled), flashsale.enqueue_mail('cancelled', v_cancelled);
    v_row.outcome := 'cancelled';
    return v_row;
  elsif v_row.status = 'paid' then
    raise exception 'This order is paid and can''t be cancelled.' using
      errcode = 'RV202', constraint = 'already_paid', detail = format('order_id %s', p_order_id),
      hint = 'A paid order is final.';
  end if;
  v_row.outcome := 'already_ended';
  return v_row;
end
$$;

comment on function flashsale.cancel(bigint, text) is
$$Cancels an order; its unit goes to the next customer in the line
p_customer_id: the order's customer; null for any customer's order.
Outcomes: cancelled; already_ended (it was cancelled, expired or unserved before: nothing changes).
Errors: RV102 unknown order, or another customer's; RV202 already paid.$$;
