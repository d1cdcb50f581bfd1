-- Rival (c): a row a unit, taken with skip locked.
create schema units;
create table units.units (item_id int not null, unit int not null, primary key (item_id, unit));
create table units.orders (like counter.orders including all);

create function units.reserve(p_item_id int, p_customer_id text) returns text
language plpgsql as $$
declare
  v_status text;
begin
  select o.status into v_status from units.orders o
  where o.item_id = p_item_id and o.customer_id = p_customer_id;
  if found then
    return v_status;
  end if;
  delete from units.units u
  where u.item_id = p_item_id and u.unit = (
    select f.unit from units.units f
    where f.item_id = p_item_id
    limit 1
    for update skip locked);
  v_status := case when found then 'reserved' else 'waiting' end;
  insert into units.orders (item_id, customer_id, status, expires_at)
  values (p_item_id, p_customer_id, v_status,
    case v_status when 'reserved' then clock_timestamp() + interval '10 minutes' end);
  return v_status;
end
$$;
insert into units.units select 1, u from generate_series(1, 400000) u;
insert into units.units select n, u from generate_series(2, 1000) n, generate_series(1, 300) u;
