-- The verb, and what it shares with the verbs that change one term (open_item, pause_item, ...).
create or replace function flashsale.change_item(
  p_item_id integer,
  p_changes jsonb,
  p_reason text default null,
  p_staff text default null,
  p_idempotency_key text default null)
returns flashsale.item_status
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  perform flashsale.check_act(p_staff, coalesce(p_reason, 'none'));
  perform flashsale.check_changes(p_changes);
  if not flashsale.is_repeated('', p_idempotency_key, 'change_item',
    jsonb_build_object('item_id', p_item_id, 'changes', p_changes))
  then
    perform flashsale.apply_changes('change_item', p_item_id, p_changes, p_reason, p_staff);
  end if;
  return flashsale.item_status(p_item_id);
end
$$;

comment on function flashsale.change_item(integer, jsonb, text, text, text) is
$$Changes an item's terms, all or nothing, and returns it
p_changes: an object with any of name, price, currency, add_stock, withdraw_stock, opens_at,
closes_at, hold_seconds, max_waiting, paused, settle_seconds, refund_seconds, max_per_order and
max_per_customer. A null removes opens_at, closes_at, max_waiting or refund_seconds, and makes
max_per_customer what max_per_order is. Holds that run keep their deadline, and orders their units.
price and currency can be changed until somebody asks for a unit. p_reason and p_staff: why, 1 to
1,000 characters, and who, 1 to 128, for history; null: no reason, and the login. p_idempotency_key:
1 to 255 characters; the same call with the same key has its effect once.
Errors: RV101 unknown item, RV204 withdraws more units than are not paid yet, RV209 the price can't
be changed any more, RV221 opens_at, if the draw of the item has begun, RV302 a value is out of
range or can not be changed, RV304 the key was used for another request.$$;

create or replace function flashsale.check_changes(p_changes jsonb) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
  v_unknown text;
begin
  if jsonb_typeof(p_changes) is distinct from 'object' then
    raise exception 'The changes must be an object.' using
      errcode = 'RV302', constraint = 'bad_value', hint = 'For example {"add_stock": 10}.';
  end if;
  select string_agg(k.key, ', ') into v_unknown
  from jsonb_object_keys(p_changes) k (key)
  where k.key not in (
    'name', 'price', 'currency', 'add_stock', 'withdraw_stock', 'opens_at', 'closes_at',
    'hold_seconds', 'max_waiting', 'paused', 'settle_seconds', 'refund_seconds',
    'max_per_order', 'max_per_customer');
  if v_unknown is not null then
    raise exception 'These can''t be changed: %.', v_unknown using
      errcode = 'RV302', constraint = 'bad_value',
      hint = 'Possible are name, price, currency, add_stock, withdraw_stock, opens_at, closes_at, '
        'hold_seconds, max_waiting, paused, settle_seconds, refund_seconds, max_per_order and '
        'max_per_customer.';
  end if;
end
$$;

comment on function flashsale.check_changes(jsonb) is
$$Raises RV302 if these are no changes of an item$$;

create or replace function flashsale.apply_changes(
  p_action text, p_item_id integer, p_changes jsonb, p_reason text, p_staff text)
returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_item constant flashsale_data.items := flashsale.lock_item(p_item_id);
begin
  perform flashsale.change_draw(v_item, p_changes) where v_item.draw is not null;
  perform flashsale.check_terms(
    jsonb_build_object('opens_at', v_item.opens_at, 'closes_at', v_item.closes_at,
      'max_per_order', v_item.max_per_order, 'max_per_customer', v_item.max_per_customer)
    || p_changes);
  perform flashsale.set_price(
    v_item,
    coalesce((p_changes ->> 'price')::numeric, v_item.price)::bigint,
    coalesce(p_changes ->> 'currency', v_item.currency));
  update flashsale_data.items i
  set
    name = coalesce(p_changes ->> 'name', i.name),
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
    perform flashsale.add_units(
      flashsale.lock_item(p_item_id), (p_changes ->> 'add_stock')::numeric::integer);
  end if;
  if p_changes ? 'withdraw_stock' then
    perform flashsale.take_units(
      flashsale.lock_item(p_item_id), (p_changes ->> 'withdraw_stock')::numeric::integer);
  end if;
  perform flashsale.note_item(p_action, p_item_id, v_item, p_reason, p_staff);
end
$$;

comment on function flashsale.apply_changes(text, integer, jsonb, text, text) is
$$Changes terms of an item, and notes what has changed as p_action
Errors: RV101 unknown item, RV302 a value is out of range, and those of set_price, add_units and
take_units.$$;

-- A price can be changed until somebody asks for a unit. reserve reads the price without a lock, so
-- a request may be under way that has read the old one, and would be answered with it. To decide
-- between the two, a change of the price takes all tickets that are entitled to a unit now, as if
-- the units were withdrawn, and gives as many new ones:
-- - If somebody else has one of these tickets, they came first: the price stays. This is seen even
--   if their transaction has not ended, because sequences do not wait for that.
-- - If not, whoever asks from now on gets a higher ticket. A request that has read the old price
--   has read the old now_serving with it, and is not served by that: it gets a place in the line,
--   which has no amount yet. The next sweep grants its unit, for the new price.
-- So reserve pays nothing for this. The first customer's ticket is not 1 afterwards.
create or replace function flashsale.set_price(
  p_item flashsale_data.items, p_price bigint, p_currency text)
returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_last constant integer := coalesce(pg_sequence_last_value(p_item.line), 0);
  v_free constant integer := case -- nobody gets a ticket before a draw is listed
    when p_item.draw in ('entering', 'listing') then 0 else p_item.now_serving - v_last end;
  v_first integer;
  v_end integer;
begin
  if (p_price, p_currency) = (p_item.price, p_item.currency) then
    return;
  end if;
  if not flashsale.nobody_has_asked(p_item.item_id, v_last) then
    perform flashsale.raise_has_orders(p_item.item_id);
  end if;
  select min(t.ticket), max(t.ticket) into v_first, v_end
  from (
    select nextval(p_item.line)::integer as ticket from generate_series(1, v_free)
  ) t;
  if v_first <> v_last + 1 or v_end <> p_item.now_serving then
    perform flashsale.raise_has_orders(p_item.item_id);
  end if;
  insert into flashsale_data.withdrawn_tickets (item_id, first_ticket, last_ticket, withdrawn_at)
  select p_item.item_id, v_first, v_end, flashsale.clock()
  where v_first is not null;
  update flashsale_data.items i
  set price = p_price, currency = p_currency, forfeited = i.forfeited + greatest(0, v_free)
  where i.item_id = p_item.item_id;
end
$$;

comment on function flashsale.set_price(flashsale_data.items, bigint, text) is
$$Changes the price of an item that the caller has locked
Takes about a second for a million units. Errors: RV209 somebody has asked for a unit.$$;

create or replace function flashsale.nobody_has_asked(p_item_id integer, p_last_ticket integer)
returns boolean
language sql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
  select
    not exists (
      select from flashsale_data.orders o
      where o.order_id > flashsale.order_id_of(p_item_id, 0)
        and o.order_id <= flashsale.order_id_of(p_item_id, 2147483647)
        and o.status <> 'void')
    and p_last_ticket = (
      select coalesce(sum(w.last_ticket - w.first_ticket + 1), 0)
      from flashsale_data.withdrawn_tickets w
      where w.item_id = p_item_id
    ) + (
      select count(*) -- holes, and withdrawn tickets that came after the units
      from flashsale_data.orders o
      where o.order_id > flashsale.order_id_of(p_item_id, 0)
        and o.order_id <= flashsale.order_id_of(p_item_id, p_last_ticket)
        and o.status = 'void')
$$;

comment on function flashsale.nobody_has_asked(integer, integer) is
$$Whether every ticket of an item up to this one is withdrawn or void
A ticket of a transaction that has not ended is neither.$$;

create or replace function flashsale.raise_has_orders(p_item_id integer) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'Somebody has asked for this item: its price and currency stay.' using
    errcode = 'RV209', constraint = 'has_orders', detail = format('item_id %s', p_item_id),
    hint = 'Close this item, and put another one on sale for the new price.';
end
$$;

comment on function flashsale.raise_has_orders(integer) is
$$Raises RV209: the price can't be changed, because somebody has asked$$;

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
