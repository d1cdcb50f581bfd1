create or replace function flashsale.change_item(p_item_id integer, p_changes jsonb)
returns flashsale.item_status
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_item flashsale_data.items;
  v_unknown text;
begin
  if jsonb_typeof(p_changes) is distinct from 'object' then
    raise exception 'The changes must be an object.' using
      errcode = 'RV302', constraint = 'bad_value', hint = 'For example {"add_stock": 10}.';
  end if;
  select string_agg(k.key, ', ') into v_unknown
  from jsonb_object_keys(p_changes) k (key)
  where k.key not in (
    'add_stock', 'withdraw_stock', 'opens_at', 'closes_at', 'hold_seconds', 'max_waiting',
    'paused', 'settle_seconds', 'refund_seconds', 'max_per_order', 'max_per_customer');
  if v_unknown is not null then
    raise exception 'These can''t be changed: %.', v_unknown using
      errcode = 'RV302', constraint = 'bad_value',
      hint = 'Possible are add_stock, withdraw_stock, opens_at, closes_at, hold_seconds, '
        'max_waiting, paused, settle_seconds, refund_seconds, max_per_order and max_per_customer.';
  end if;
  v_item := flashsale.lock_item(p_item_id);
  perform flashsale.change_draw(v_item, p_changes) where v_item.draw is not null;
  perform flashsale.check_terms(
    jsonb_build_object('opens_at', v_item.opens_at, 'closes_at', v_item.closes_at,
      'max_per_order', v_item.max_per_order, 'max_per_customer', v_item.max_per_customer)
    || p_changes);
  update flashsale_data.items i
  set
    opens_at = case when p_changes ? 'opens_at'
      then (p_changes ->> 'opens_at')::timestamptz else i.opens_at end,
    closes_at = case when p_changes ? 'closes_at'
      then (p_changes ->> 'closes_at')::timestamptz else i.closes_at end,
    max_waiting = case when p_changes ? 'max_waiting'
      then (p_changes ->> 'max_waiting')::numeric else i.max_waiting end,
    refund_seconds = case when p_changes ? 'refund_seconds'
      then (p_changes ->> 'refund_seconds')::numeric else i.refund_seconds end,
    max_per_order = coalesce((p_changes ->> 'max_per_order')::numeric, i.max_per_order),
    max_per_customer = case when p_changes ? 'max_per_customer'
      then (p_changes ->> 'max_per_customer')::numeric else i.max_per_customer end,
    settle_seconds = coalesce((p_changes ->> 'settle_seconds')::numeric, i.settle_seconds),
    hold_seconds = coalesce((p_changes ->> 'hold_seconds')::numeric, i.hold_seconds),
    paused = coalesce((p_changes ->> 'paused')::boolean, i.paused)
  where i.item_id = p_item_id;
  update flashsale_data.items i -- requests have to count from now on, also if the limit falls again
  set
    counts_units = true,
    highest_limit = greatest(i.highest_limit, coalesce(i.max_per_customer, i.max_per_order))
  where i.item_id = p_item_id and coalesce(i.max_per_customer, i.max_per_order) > 1;
  if p_changes ? 'add_stock' then
    perform flashsale.restock(p_item_id, (p_changes ->> 'add_stock')::numeric::integer);
  end if;
  if p_changes ? 'withdraw_stock' then
    perform flashsale.withdraw(p_item_id, (p_changes ->> 'withdraw_stock')::numeric::integer);
  end if;
  return flashsale.item_status(p_item_id);
end
$$;

comment on function flashsale.change_item(integer, jsonb) is
$$Changes an item's terms, all or nothing, and returns it
p_changes: an object with any of add_stock, withdraw_stock, opens_at, closes_at, hold_seconds,
max_waiting, paused, settle_seconds, refund_seconds, max_per_order and max_per_customer. A null
removes opens_at, closes_at, max_waiting or refund_seconds, and makes max_per_customer what
max_per_order is. Holds that run keep their deadline, and orders their units.
Errors: RV101 unknown item, RV204 withdraws more units than are not paid yet, RV221 opens_at, if the
draw of the item has begun, RV302 a value is out of range or can not be changed.$$;

create or replace function flashsale.change_draw(p_item flashsale_data.items, p_changes jsonb)
returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_now constant timestamptz := flashsale.clock();
begin
  if p_changes ? 'opens_at' and p_item.draw <> 'called_off' then
    if (p_item.draw <> 'entering' or p_item.opens_at <= v_now)
      and flashsale.time_in(p_changes, 'opens_at') > v_now
    then
      raise exception 'The draw of this item has begun.' using
        errcode = 'RV221', constraint = 'draw_has_begun',
        detail = format('item_id %s, draw %s', p_item.item_id, p_item.draw),
        hint = 'Its opening can''t be moved any more. You may pause or close the sale.';
    elsif p_item.draw = 'entering' and p_changes -> 'opens_at' = 'null' then
      raise exception 'An item with a draw needs an opening.' using
        errcode = 'RV302', constraint = 'bad_value', detail = format('item_id %s', p_item.item_id),
        hint = 'To begin the draw now, set opens_at to now: open_item does so.';
    end if;
  end if;
  perform flashsale.forget_noted_draw(p_item.item_id);
end
$$;

comment on function flashsale.change_draw(flashsale_data.items, jsonb) is
$$What a change of terms means for the item's draw
opens_at can be moved until then. Errors: RV221 draw_has_begun, RV302 opens_at would be null.$$;
