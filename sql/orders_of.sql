create or replace function flashsale.orders_of(
  p_customer_id text, p_limit integer default 100, p_before bigint default null)
returns setof flashsale.order_row
language sql stable security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
  select
    'found', flashsale.shown_id(o.order_id), o.item_id, o.customer_id, o.status, o.ticket,
    o.position, o.created_at, o.reserved_at, o.expires_at, o.paid_at, o.ended_at, o.payment_id,
    o.payment_status, o.amount, o.currency, o.checkout_url, null::timestamptz,
    o.late_order_id, o.reference, o.quantity, o.units, o.chance, o.forecast_as_of
  from flashsale.order_status o
  where o.customer_id = p_customer_id
    and (p_before is null or (o.created_at, o.order_id) < (
      select b.created_at, b.order_id
      from flashsale_data.orders b
      where b.order_id = flashsale.current_id(p_before) and b.customer_id = p_customer_id))
  order by o.created_at desc, o.order_id desc
  limit least(p_limit, 1000)
$$;

comment on function flashsale.orders_of(text, integer, bigint) is
$$A customer's orders, newest first
p_limit: at most so many, up to 1,000. p_before: an order_id of theirs, to go on after that order.
Outcomes: found.$$;
