-- A hold asks for its money by its job alone: what a first attempt says is what its order says, so
-- its row can wait for the first who has more to tell.
create or replace function flashsale.first_payments(p_order_ids bigint[]) returns void
language sql volatile set search_path = pg_catalog, pg_temp
as $$
  insert into flashsale_data.payments (payment_id, order_id, amount, currency, requested_at)
  overriding system value
  select o.order_id, o.order_id, i.price, i.currency, o.reserved_at
  from flashsale_data.orders o
  join flashsale_data.items i on i.item_id = o.item_id
  where o.order_id = any (p_order_ids)
    and o.reserved_at is not null
    and not exists (select from flashsale_data.payments p where p.order_id = o.order_id)
  order by o.order_id
  on conflict do nothing
$$;

comment on function flashsale.first_payments(bigint[]) is
$$Writes down first payment attempts that only their orders show so far
The attempt has the order's id. Orders that never held a unit have none.$$;
