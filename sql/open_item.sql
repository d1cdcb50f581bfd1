create or replace function flashsale.open_item(p_item_id integer) returns flashsale.item_status
language sql security definer set search_path = pg_catalog, pg_temp
as $$
  select * from flashsale.change_item(p_item_id, jsonb_build_object(
    'opens_at', flashsale.clock(), 'closes_at', null, 'paused', false))
$$;

comment on function flashsale.open_item(integer) is
$$Opens the sale of an item now, with no end
Also ends a pause. Returns the item. Errors: RV101 unknown item.$$;
