-- Rival (b): read the item with select … for update, decide, write it back.
create schema for_update;
create table for_update.items (like counter.items including all);
create table for_update.orders (like counter.orders including all);

create function for_update.reserve(p_item_id int, p_customer_id text) returns text
language plpgsql as $$
declare
  v_status text;
  v_available int;
begin
  select i.available into v_available from for_update.items i
  where i.item_id = p_item_id
  for update;
  select o.status into v_status from for_update.orders o
  where o.item_id = p_item_id and o.customer_id = p_customer_id;
  if found then
    return v_status;
  end if;
  v_status := case when v_available > 0 then 'reserved' else 'waiting' end;
  insert into for_update.orders (item_id, customer_id, status, expires_at)
  values (p_item_id, p_customer_id, v_status,
    case v_status when 'reserved' then clock_timestamp() + interval '10 minutes' end);
  if v_status = 'reserved' then
    update for_update.items i set available = v_available - 1 where i.item_id = p_item_id;
  end if;
  return v_status;
end
$$;
insert into for_update.items select n, 1000000000 from generate_series(1, 1000) n;
