-- Rival (a): a counter in the item's row. The same contract as reserve: durable, one order a
-- customer, a waiting line, a deadline; the simplest thing that never oversells.
create schema counter;
create table counter.items (item_id int primary key, available int not null);
create table counter.orders (
  order_id bigint generated always as identity primary key,
  item_id int not null,
  customer_id text not null,
  status text not null,
  expires_at timestamptz,
  created_at timestamptz not null default clock_timestamp(),
  unique (item_id, customer_id)
);
create index on counter.orders (expires_at) where status = 'reserved';
create index on counter.orders (item_id, order_id) where status = 'waiting';

create function counter.reserve(p_item_id int, p_customer_id text) returns text
language plpgsql as $$
declare
  v_status text;
begin
  select o.status into v_status from counter.orders o
  where o.item_id = p_item_id and o.customer_id = p_customer_id;
  if found then
    return v_status;
  end if;
  update counter.items i set available = i.available - 1
  where i.item_id = p_item_id and i.available > 0;
  v_status := case when found then 'reserved' else 'waiting' end;
  insert into counter.orders (item_id, customer_id, status, expires_at)
  values (p_item_id, p_customer_id, v_status,
    case v_status when 'reserved' then clock_timestamp() + interval '10 minutes' end);
  return v_status;
end
$$;
insert into counter.items select n, 1000000000 from generate_series(1, 1000) n;
