-- Putting items on sale and changing the terms. These lock the item's row and may wait for a sweep
-- of that item; no customer ever waits for them.
create function flashsale.create_item(
  p_sku text,
  p_name text,
  p_price bigint,
  p_currency text,
  p_stock integer,
  p_hold_seconds integer,
  p_opens_at timestamptz default null,
  p_closes_at timestamptz default null,
  p_max_waiting integer default null,
  p_late_payment text default 'refund')
returns flashsale.item_status
language plpgsql security definer set search_path = '' set enable_seqscan = off
as $$
declare
  v_item_id integer := nextval(pg_get_serial_sequence('flashsale_data.items', 'item_id'));
begin
  perform flashsale.check_terms(jsonb_build_object(
    'sku', p_sku, 'name', p_name, 'price', p_price, 'currency', p_currency, 'stock', p_stock,
    'hold_seconds', p_hold_seconds, 'max_waiting', p_max_waiting,
    'late_payment', p_late_payment, 'opens_at', p_opens_at, 'closes_at', p_closes_at));
  -- The one dynamic statement: DDL takes no parameters. cache 1, or tickets would come out of turn.
  execute format('create sequence flashsale_data.%I as integer cache 1', 'line_' || v_item_id);
  insert into flashsale_data.items (
    item_id, sku, name, price, currency, stock, hold_seconds, opens_at, closes_at, max_waiting,
    late_payment, line, created_at)
  overriding system value
  values (
    v_item_id, p_sku, p_name, p_price, p_currency, p_stock, p_hold_seconds, p_opens_at, p_closes_at,
    p_max_waiting, p_late_payment::flashsale_data.late_payment,
    format('flashsale_data.%I', 'line_' || v_item_id)::regclass, flashsale.clock())
  on conflict (sku) do nothing;
  if not found then
    raise exception 'There is already an item with this sku.' using
      errcode = 'RV201', constraint = 'sku_taken', detail = format('sku %L', p_sku),
      hint = 'Choose another sku, or change the item that has it.';
  end if;
  return flashsale.item_status(v_item_id);
end
$$;

comment on function flashsale.create_item(
  text, text, bigint, text, integer, integer, timestamptz, timestamptz, integer, text) is
$$Puts a new item on sale and returns it
p_price: minor units of p_currency (ISO 4217). p_hold_seconds: how long a reservation may be paid,
1 second to 7 days. p_opens_at, p_closes_at: null for no limit. p_max_waiting: length of the line,
null for no limit. p_late_payment: refund or keep_if_free.
Errors: RV201 sku taken, RV302 a value out of range.$$;

-- One table of limits, said in words. p_terms holds what is to be set; null means absent here.
create function flashsale.check_terms(p_terms jsonb) returns void
language plpgsql stable set search_path = ''
as $$
declare
  v_problem text;
begin
  select string_agg(r.problem, '; ' order by r.n) into v_problem
  from (values
    (1, not coalesce(length(p_terms ->> 'sku') between 1 and 64, not p_terms ? 'sku'),
      'sku must have 1 to 64 characters'),
    (2, not coalesce(length(p_terms ->> 'name') between 1 and 200, not p_terms ? 'name'),
      'name must have 1 to 200 characters'),
    (3, not coalesce((p_terms ->> 'price')::numeric between 1 and 1000000000000,
        not p_terms ? 'price'),
      'price must be 1 to 1000000000000 minor units'),
    (4, not coalesce((p_terms ->> 'currency') ~ '^[A-Z]{3}$', not p_terms ? 'currency'),
      'currency must be three capital letters'),
    (5, not coalesce((p_terms ->> 'stock')::numeric between 0 and 10000000,
        not p_terms ? 'stock'),
      'stock must be 0 to 10000000 units'),
    (6, not coalesce((p_terms ->> 'hold_seconds')::numeric between 1 and 604800,
        not p_terms ? 'hold_seconds'),
      'hold_seconds must be 1 to 604800'),
    (7, (p_terms ->> 'max_waiting')::numeric not between 0 and 10000000,
      'max_waiting must be 0 to 10000000, or null'),
    (8, not coalesce((p_terms ->> 'late_payment') in ('refund', 'keep_if_free'),
        not p_terms ? 'late_payment'),
      'late_payment must be refund or keep_if_free'),
    (9, (p_terms ->> 'opens_at')::timestamptz >= (p_terms ->> 'closes_at')::timestamptz,
      'opens_at must be before closes_at'),
    (10, not isfinite((p_terms ->> 'opens_at')::timestamptz)
        or not isfinite((p_terms ->> 'closes_at')::timestamptz),
      'opens_at and closes_at must be finite, or null')
  ) r (n, wrong, problem)
  where r.wrong;
  if v_problem is not null then
    raise exception 'These terms are not possible: %.', v_problem using
      errcode = 'RV302', constraint = 'bad_value', hint = 'Correct them and call again.';
  end if;
end
$$;

comment on function flashsale.check_terms(jsonb) is
$$Raises RV302 if an item's terms are out of range$$;

create function flashsale.lock_item(p_item_id integer) returns flashsale_data.items
language plpgsql set search_path = ''
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

create function flashsale.restock(p_item_id integer, p_units integer)
returns flashsale.item_status
language plpgsql security definer set search_path = '' set enable_seqscan = off
as $$
declare
  v_item flashsale_data.items := flashsale.lock_item(p_item_id);
  v_settled integer := least(p_units, v_item.withdrawing);
begin
  if coalesce(p_units not between 1 and 10000000, true) then
    raise exception 'Restock by 1 to 10000000 units.' using
      errcode = 'RV302', constraint = 'bad_value', detail = format('units %s', p_units);
  end if;
  perform flashsale.check_terms(
    jsonb_build_object('stock', v_item.stock::bigint + p_units - v_settled));
  update flashsale_data.items i
  set stock = i.stock + p_units - v_settled, withdrawing = i.withdrawing - v_settled
  where i.item_id = p_item_id;
  return flashsale.item_status(p_item_id);
end
$$;

comment on function flashsale.restock(integer, integer) is
$$Adds units to an item's stock; the line is served first
Units still to be withdrawn (withdrawing) are settled first: new units take their place.
Errors: RV101 unknown item, RV302 units or the new stock out of range.$$;

-- now_serving must not go down, so units leave as a customer's would: tickets that nobody has
-- asked for are taken, as voids that count as recycled already, and stock falls by as many. What is
-- not free now is a debt that swallows the next forfeits (see promote).
create function flashsale.withdraw(p_item_id integer, p_units integer)
returns flashsale.item_status
language plpgsql security definer set search_path = '' set enable_seqscan = off
as $$
declare
  v_item flashsale_data.items := flashsale.lock_item(p_item_id);
  v_now timestamptz := flashsale.clock();
  v_possible integer;
begin
  select v_item.stock - v_item.withdrawing - v_item.paid - coalesce(sum(t.paid), 0)
  into v_possible
  from flashsale_data.tallies t
  where t.item_id = p_item_id;
  if coalesce(p_units < 1, true) then
    raise exception 'Withdraw at least 1 unit.' using
      errcode = 'RV302', constraint = 'bad_value', detail = format('units %s', p_units);
  elsif p_units > v_possible then
    raise exception 'Only % of the units can still be withdrawn.', v_possible using
      errcode = 'RV204', constraint = 'withdraw_too_much',
      detail = format('asked for %s; of %s units the others are paid or already being withdrawn',
        p_units, v_item.stock),
      hint = 'Withdraw fewer units.';
  end if;
  with free as (
    select nextval(v_item.line)::integer as ticket
    from generate_series(1, least(p_units,
      v_item.now_serving - coalesce(pg_sequence_last_value(v_item.line), 0)))
  ), voided as (
    insert into flashsale_data.orders (
      order_id, item_id, ticket, status, created_at, ended_at, recycled)
    select
      flashsale.order_id_of(p_item_id, f.ticket), p_item_id, f.ticket, 'void', v_now, v_now,
      f.ticket <= v_item.now_serving
    from free f
    returning recycled
  ), counted as (
    select
      count(*) filter (where v.recycled)::integer as units,
      count(*) filter (where not v.recycled)::integer as gaps -- customers were faster
    from voided v
  )
  update flashsale_data.items i
  set
    stock = i.stock - c.units,
    forfeited = i.forfeited + c.units,
    withdrawing = i.withdrawing + p_units - c.units,
    gaps = i.gaps + c.gaps
  from counted c
  where i.item_id = p_item_id;
  return flashsale.item_status(p_item_id);
end
$$;

comment on function flashsale.withdraw(integer, integer) is
$$Takes units off sale: free ones now, the rest as they come back
Never breaks a hold. stock falls as units leave; withdrawing says how many are still to go.
Errors: RV101 unknown item, RV204 more than are not paid, RV302 less than 1.$$;

create function flashsale.change_item(p_item_id integer, p_changes jsonb)
returns flashsale.item_status
language plpgsql security definer set search_path = '' set enable_seqscan = off
as $$
declare
  v_item flashsale_data.items;
  v_unknown text;
begin
  select string_agg(k.key, ', ') into v_unknown
  from jsonb_object_keys(p_changes) k (key)
  where k.key not in (
    'add_stock', 'withdraw_stock', 'opens_at', 'closes_at', 'hold_seconds', 'max_waiting',
    'paused');
  if v_unknown is not null then
    raise exception 'These can''t be changed: %.', v_unknown using
      errcode = 'RV302', constraint = 'bad_value',
      hint = 'Possible are add_stock, withdraw_stock, opens_at, closes_at, hold_seconds, '
        'max_waiting and paused.';
  end if;
  v_item := flashsale.lock_item(p_item_id);
  perform flashsale.check_terms(
    jsonb_build_object('opens_at', v_item.opens_at, 'closes_at', v_item.closes_at)
    || (p_changes - 'add_stock' - 'withdraw_stock' - 'paused'));
  update flashsale_data.items i
  set
    opens_at = case when p_changes ? 'opens_at'
      then (p_changes ->> 'opens_at')::timestamptz else i.opens_at end,
    closes_at = case when p_changes ? 'closes_at'
      then (p_changes ->> 'closes_at')::timestamptz else i.closes_at end,
    max_waiting = case when p_changes ? 'max_waiting'
      then (p_changes ->> 'max_waiting')::integer else i.max_waiting end,
    hold_seconds = coalesce((p_changes ->> 'hold_seconds')::integer, i.hold_seconds),
    paused = coalesce((p_changes ->> 'paused')::boolean, i.paused)
  where i.item_id = p_item_id;
  if p_changes ? 'add_stock' then
    perform flashsale.restock(p_item_id, (p_changes ->> 'add_stock')::integer);
  end if;
  if p_changes ? 'withdraw_stock' then
    perform flashsale.withdraw(p_item_id, (p_changes ->> 'withdraw_stock')::integer);
  end if;
  return flashsale.item_status(p_item_id);
end
$$;

comment on function flashsale.change_item(integer, jsonb) is
$$Changes an item's terms, all or nothing, and returns it
p_changes: any of add_stock, withdraw_stock, opens_at, closes_at, hold_seconds, max_waiting, paused.
A null removes opens_at, closes_at or max_waiting. Holds that run keep their deadline.
Errors: RV101 unknown item, RV204 withdrawing more than are not paid, RV302 a value out of range.$$;

create function flashsale.open_item(p_item_id integer) returns flashsale.item_status
language sql security definer set search_path = '' set enable_seqscan = off
as $$
  select * from flashsale.change_item(p_item_id, jsonb_build_object(
    'opens_at', flashsale.clock(), 'closes_at', null, 'paused', false))
$$;

comment on function flashsale.open_item(integer) is
$$Opens the sale of an item now, with no end
Errors: RV101 unknown item.$$;

create function flashsale.close_item(p_item_id integer) returns flashsale.item_status
language plpgsql security definer set search_path = '' set enable_seqscan = off
as $$
declare
  v_now timestamptz;
begin
  perform flashsale.lock_item(p_item_id);
  v_now := flashsale.clock();
  update flashsale_data.items i
  set
    closes_at = least(i.closes_at, v_now),
    opens_at = case when i.opens_at < v_now then i.opens_at end -- it never opened: no start
  where i.item_id = p_item_id;
  return flashsale.item_status(p_item_id);
end
$$;

comment on function flashsale.close_item(integer) is
$$Closes the sale of an item now, for good: its line ends unserved
Holds may still be paid until their deadline. Errors: RV101 unknown item.$$;

create function flashsale.pause_item(p_item_id integer) returns flashsale.item_status
language sql security definer set search_path = '' set enable_seqscan = off
as $$ select * from flashsale.change_item(p_item_id, '{"paused": true}') $$;

comment on function flashsale.pause_item(integer) is
$$Pauses an item: no new orders, no promotions; holds run on
Errors: RV101 unknown item.$$;

create function flashsale.resume_item(p_item_id integer) returns flashsale.item_status
language sql security definer set search_path = '' set enable_seqscan = off
as $$ select * from flashsale.change_item(p_item_id, '{"paused": false}') $$;

comment on function flashsale.resume_item(integer) is
$$Ends the pause of an item; the next sweep serves its line
Errors: RV101 unknown item.$$;
