create function flashsale.raise_unknown_item(p_item_id integer) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'There is no such item.' using
    errcode = 'RV101', constraint = 'unknown_item', detail = format('item_id %s', p_item_id),
    hint = 'flashsale.items() lists the items.';
end
$$;

comment on function flashsale.raise_unknown_item(integer) is
$$Raises RV101: there is no such item$$;
