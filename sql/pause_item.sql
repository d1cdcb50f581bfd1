create or replace function flashsale.pause_item(p_item_id integer) returns flashsale.item_status
language sql security definer set search_path = pg_catalog, pg_temp
as $$ select * from flashsale.change_item(p_item_id, '{"paused": true}') $$;

comment on function flashsale.pause_item(integer) is
$$Pauses an item: no new orders, no promotions; holds run on
Returns the item. Errors: RV101 unknown item.$$;
