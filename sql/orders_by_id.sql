create or replace function flashsale.orders_by_id(p_order_ids bigint[])
returns setof flashsale.order_row
language sql stable security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
  select
    'found', flashsale.shown_id(o.order_id), o.item_id, o.customer_id, r.status::text, o.ticket,
    (w.place).position, o.created_at,
    case when r.status <> 'waiting' then r.reserved_at end, r.expires_at, o.paid_at, r.ended_at,
    o.payment_id, o.payment_status, o.amount, o.currency, o.checkout_url, null::timestamptz,
    o.late_order_id, o.reference, o.quantity,
    case when r.status <> 'waiting' and r.reserved_at is not null then coalesce(r.units, 1) end,
    (w.place).chance, (w.place).as_of
  from flashsale.order_status o
  join flashsale_data.orders r on r.order_id = o.order_id
  left join flashsale.places(array(
    select a.order_id
    from unnest(p_order_ids) p (order_id)
    join flashsale_data.orders a on a.order_id = flashsale.current_id(p.order_id)
    where a.status = 'waiting')) w on w.order_id = o.order_id
  where o.order_id = any (
    array(select flashsale.current_id(p.order_id) from unnest(p_order_ids) p (order_id)))
$$;

comment on function flashsale.orders_by_id(bigint[]) is
$$Many orders at once, of any customers
For a caller that follows orders until they are final. So a hold past its deadline is shown as
settling or expired only once a sweep has marked it: until then, a payment that came in time may
still be committing. The rows are not sorted, and unknown orders are left out. Outcomes: found.$$;
