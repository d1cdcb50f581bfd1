-- The two errors that more than one function raises. Each stands once, so that its code, its name
-- and its hint are the same wherever a caller meets it. All other errors stand where they are
-- raised.
--
-- Both functions always raise. They return void so that callers can call them by `perform`.
create or replace function flashsale.raise_unknown_item(p_item_id integer) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'There is no such item.' using
    errcode = 'RV101', constraint = 'unknown_item', detail = format('item_id %s', p_item_id),
    hint = 'flashsale.items() lists the items; so does GET /items.';
end
$$;

comment on function flashsale.raise_unknown_item(integer) is
$$Raises RV101: no item has this item_id$$;

create or replace function flashsale.raise_unknown_order(p_order_id bigint) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'There is no such order.' using
    errcode = 'RV102', constraint = 'unknown_order', detail = format('order_id %s', p_order_id),
    hint = 'Use the order_id that reserve returned, with the customer who asked.';
end
$$;

comment on function flashsale.raise_unknown_order(bigint) is
$$Raises RV102: no order has this order_id, or it is another customer's
The two cases look the same to a caller, so nobody learns which ids other customers have.$$;
