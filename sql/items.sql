create or replace function flashsale.items(p_limit integer default 100, p_after integer default 0)
returns setof flashsale.item_status
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
  select * from flashsale.item_status s
  where s.item_id > p_after
  order by s.item_id
  limit least(p_limit, 1000)
$$;

comment on function flashsale.items(integer, integer) is
$$All items, by item_id
p_limit: at most so many, up to 1,000. p_after: an item_id, to go on after that item.$$;

-- A form of its own, because views of others may use the other one, which could not be dropped.
create or replace function flashsale.items(p_sku text) returns setof flashsale.item_status
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$ select * from flashsale.item_status s where s.sku = p_sku $$;

comment on function flashsale.items(text) is
$$The item with this sku; no row: there is none$$;
