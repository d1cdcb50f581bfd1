create or replace function flashsale.resume_item(p_item_id integer) returns flashsale.item_status
language sql security definer set search_path = pg_catalog, pg_temp
as $$ select * from flashsale.change_item(p_item_id, '{"paused": false}') $$;

comment on function flashsale.resume_item(integer) is
$$Ends the pause of an item; the next sweep serves its line
Returns the item. Errors: RV101 unknown item.$$;
