create or replace function flashsale.lock_item(p_item_id integer) returns flashsale_data.items
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_item flashsale_data.items;
begin
  select * into v_item from flashsale_data.items i
  where i.item_id = p_item_id
  for no key update;
  if not found then
    perform flashsale.raise_unknown_item(p_item_id);
  end if;
  return v_item;
end
$$;

comment on function flashsale.lock_item(integer) is
$$Locks an item's row for an operator and returns it
Errors: RV101 unknown item.$$;
