-- A new hold has a payment job but no row in payments yet, because everything that the row could
-- say follows from the order. This saves an insert per reservation. The functions that are about to
-- change a first attempt call this one before, which inserts the row.
create or replace function flashsale.first_payments(p_order_ids bigint[]) returns void
language sql volatile set search_path = pg_catalog, pg_temp
as $$
  insert into flashsale_data.payments (payment_id, order_id, amount, currency, requested_at)
  overriding system value
  select o.order_id, o.order_id, i.price * coalesce(o.units, 1), i.currency, o.reserved_at
  from flashsale_data.orders o
  join flashsale_data.items i on i.item_id = o.item_id
  where o.order_id = any (p_order_ids)
    and o.reserved_at is not null and o.head_id is null
    and (
      select true from flashsale_data.payments p where p.order_id = o.order_id limit 1
    ) is null -- no join, which a session might keep reading all payments for
  order by o.order_id
  on conflict do nothing
$$;

comment on function flashsale.first_payments(bigint[]) is
$$Inserts the rows of these orders' first payment attempts, if missing
The attempt has the order's id. Orders that never held a unit have none.$$;
