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
