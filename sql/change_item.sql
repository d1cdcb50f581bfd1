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
    'paused', 'settle_seconds', 'refund_seconds');
  if v_unknown is not null then
    raise exception 'These can''t be changed: %.', v_unknown using
      errcode = 'RV302', constraint = 'bad_value',
      hint = 'Possible are add_stock, withdraw_stock, opens_at, closes_at, hold_seconds, '
        'max_waiting, paused, settle_seconds and refund_seconds.';
  end if;
  v_item := flashsale.lock_item(p_item_id);
  perform flashsale.check_terms(
    jsonb_build_object('opens_at', v_item.opens_at, 'closes_at', v_item.closes_at)
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
    settle_seconds = coalesce((p_changes ->> 'settle_seconds')::numeric, i.settle_seconds),
    hold_seconds = coalesce((p_changes ->> 'hold_seconds')::numeric, i.hold_seconds),
    paused = coalesce((p_changes ->> 'paused')::boolean, i.paused)
  where i.item_id = p_item_id;
  perform flashsale.note_item_event('item.changed', p_item_id, c.changes)
  from (select p_changes - '{add_stock,withdraw_stock}'::text[]) c (changes)
  where c.changes <> '{}';
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
max_waiting, paused, settle_seconds and refund_seconds. A null removes opens_at, closes_at,
max_waiting or refund_seconds. Holds that run keep their deadline.
Errors: RV101 unknown item, RV204 withdraws more units than are not paid yet, RV302 a value is out
of range or can not be changed.$$;
