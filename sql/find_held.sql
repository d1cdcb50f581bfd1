-- Finding out who would have to wait, without taking a ticket. A request for a unit takes its
-- ticket first, and then waits for whoever is placing an order of the same customer: an internal
-- tool that has left its transaction open, for example. If the request gives up, its ticket is a
-- hole, and as long as that transaction is open nobody can know that the hole is one (see fill). So
-- each attempt would hide a unit. The HTTP service therefore asks here first, once it has met such
-- a lock.
create or replace function flashsale.find_held(
  p_item_ids integer[], p_customer_ids text[], p_idempotency_keys text[] default null)
returns boolean[]
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '2ms'
as $$
begin
  perform flashsale.check_batch(
    p_item_ids, p_customer_ids, p_idempotency_keys, null, null, null);
  return array(
    select flashsale.is_held(r.item_id, r.customer_id, r.idempotency_key)
    from rows from (unnest(p_item_ids), unnest(p_customer_ids), unnest(p_idempotency_keys))
      with ordinality r (item_id, customer_id, idempotency_key, ord)
    order by r.ord);
end
$$;

comment on function flashsale.find_held(integer[], text[], text[]) is
$$Which of up to 1,000 requests would have to wait for another transaction
One value per request, in their order; true: its key is being used, or its customer's order of this
item is being placed or is locked, by a transaction that stays open for more than 2 ms. Takes no
tickets and writes nothing.
Errors: RV301 arrays that do not fit together.$$;

-- The key and the order are inserted as reserve would insert them, and then taken back. Only the
-- attempt shows whether there is a duplicate, because nobody can see the rows of an open
-- transaction.
create or replace function flashsale.is_held(
  p_item_id integer, p_customer_id text, p_idempotency_key text)
returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_no_order constant bigint := -pg_backend_pid(); -- an id that neither an order nor a session has
  v_product_id constant integer := (
    select i.product_id from flashsale_data.items i where i.item_id = p_item_id);
begin
  if p_item_id is null or not flashsale.is_request(p_customer_id, p_idempotency_key) then
    return false; -- is refused without a wait
  end if;
  perform from flashsale_data.orders o -- an order that reserve would have to deal with first
  where coalesce(o.product_id, o.item_id) = coalesce(v_product_id, p_item_id)
    and o.customer_id = p_customer_id and o.ended_at is null and o.may_buy_again is null
    and (o.status = 'reserved' and o.expires_at <= flashsale.clock()
      or o.status = 'paid' and exists (
        select from flashsale_data.items i where i.item_id = p_item_id and i.counts_units))
  for update;
  insert into flashsale_data.order_keys (customer_id, item_id, idempotency_key, order_id)
  select p_customer_id, p_item_id, p_idempotency_key, v_no_order
  where p_idempotency_key is not null
  on conflict do nothing;
  insert into flashsale_data.orders (
    order_id, item_id, ticket, customer_id, status, created_at, product_id)
  values (v_no_order, p_item_id, 0, p_customer_id, 'waiting', flashsale.clock(), v_product_id)
  on conflict (coalesce(product_id, item_id), customer_id)
    where ended_at is null and may_buy_again is null do nothing;
  raise exception 'It is taken back.';
exception
  when lock_not_available then
    return true;
  when raise_exception then
    return false;
end
$$;

comment on function flashsale.is_held(integer, text, text) is
$$Whether this customer would have to wait for another transaction$$;
