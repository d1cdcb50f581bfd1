-- create_item and the other verbs for items lock the item's row, so they may wait for a sweep of
-- that item. No customer ever waits for them, because reserve reads the row without a lock.
create or replace function flashsale.create_item(
  p_sku text,
  p_name text,
  p_price bigint,
  p_currency text,
  p_stock integer,
  p_hold_seconds integer,
  p_opens_at flashsale.moment default null,
  p_closes_at flashsale.moment default null,
  p_max_waiting integer default null,
  p_late_payment text default 'refund',
  p_settle_seconds integer default 2,
  p_refund_seconds integer default null,
  p_max_per_order integer default 1,
  p_max_per_customer integer default null,
  p_product text default null,
  p_draw boolean default false,
  p_reason text default null,
  p_staff text default null,
  p_idempotency_key text default null)
returns flashsale.item_status
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_terms constant jsonb := jsonb_build_object(
    'sku', p_sku, 'name', p_name, 'price', p_price, 'currency', p_currency, 'stock', p_stock,
    'hold_seconds', p_hold_seconds, 'max_waiting', p_max_waiting,
    'late_payment', p_late_payment, 'opens_at', p_opens_at.at, 'closes_at', p_closes_at.at,
    'settle_seconds', p_settle_seconds, 'refund_seconds', p_refund_seconds,
    'max_per_order', p_max_per_order, 'max_per_customer', p_max_per_customer,
    'product', p_product, 'draw', p_draw);
  v_item_id integer;
begin
  perform flashsale.check_act(p_staff, coalesce(p_reason, 'none'));
  -- In UTC, because in JSON a time has the time zone of the session.
  if flashsale.is_repeated('', p_idempotency_key, 'create_item', v_terms || jsonb_build_object(
    'opens_at', p_opens_at.at at time zone 'UTC', 'closes_at', p_closes_at.at at time zone 'UTC'))
  then
    return flashsale.item_status(flashsale.noted_result('', p_idempotency_key)::integer);
  end if;
  perform flashsale.check_terms(v_terms);
  v_item_id := flashsale.next_item_id();
  -- This is the only dynamic statement, because DDL takes no parameters. With a cache above 1, each
  -- session would take numbers ahead, and tickets would not follow the order of the requests.
  execute format('create sequence flashsale_data.%I as integer cache 1', 'line_' || v_item_id);
  insert into flashsale_data.items (
    item_id, sku, name, price, currency, stock, hold_seconds, opens_at, closes_at, max_waiting,
    late_payment, settle_seconds, refund_seconds, max_per_order, max_per_customer, highest_limit,
    product, product_id, counts_units, draw, line, created_at)
  overriding system value
  values (
    v_item_id, p_sku, p_name, p_price, p_currency, p_stock, p_hold_seconds, p_opens_at.at,
    p_closes_at.at, p_max_waiting, p_late_payment::flashsale_data.late_payment, p_settle_seconds,
    p_refund_seconds,
    p_max_per_order, p_max_per_customer, coalesce(p_max_per_customer, p_max_per_order),
    p_product, flashsale.product_id_of(p_product, v_item_id),
    p_product is not null or coalesce(p_max_per_customer, p_max_per_order) > 1,
    case when p_draw then 'entering'::flashsale_data.draw_state end,
    format('flashsale_data.%I', 'line_' || v_item_id)::regclass, flashsale.clock())
  on conflict (sku) do nothing;
  if not found then
    perform flashsale.raise_sku_taken(p_sku);
  end if;
  if p_draw then
    perform flashsale.create_draw(v_item_id);
  end if;
  perform
    flashsale.note_result('', p_idempotency_key, v_item_id),
    flashsale.note_item('create_item', v_item_id, null, p_reason, p_staff);
  return flashsale.item_status(v_item_id);
end
$$;

comment on function flashsale.create_item(
  text, text, bigint, text, integer, integer, flashsale.moment, flashsale.moment, integer, text,
  integer, integer, integer, integer, text, boolean, text, text, text) is
$$Puts a new item on sale and returns it
p_sku: your name of the item, 1 to 64 characters. p_name: for customers, 1 to 200 characters.
p_price: 1 to 1,000,000,000,000 minor units of p_currency (ISO 4217). p_stock: 0 to 10,000,000
units. p_hold_seconds: how long a reservation may be paid, 1 second to 7 days. p_opens_at and
p_closes_at: when the sale begins and ends; null for no limit. p_max_waiting: length of the line, 0
to 10,000,000; null for no limit. p_late_payment: what happens to money that comes too late; refund,
or keep_if_free (it buys a unit that is free while nobody waits).
p_opens_at and p_closes_at are each a timestamptz, or a text with the time zone:
2026-11-27T20:00:00Z, 2026-11-27 21:00+01. They are in the years 2000 to 2999. p_settle_seconds: for
how long after a deadline the payment provider is asked whether the money came in time, 0 to 60.
p_refund_seconds: for how long customers may give a paid order back, 1 second to a year; null:
never.
p_max_per_order: how many units an order may be for, 1 to 100. p_max_per_customer: how many units a
customer may have bought and asked for in all, p_max_per_order to 10,000; null: p_max_per_order.
p_product: items with the same product are variants of it, 1 to 64 characters. A customer's units of
all of them count, and they have one open order of them at a time. It can't be changed later.
p_draw: customers enter before p_opens_at, which must be in the future, and are shuffled when it
opens.
p_reason and p_staff: why, 1 to 1,000 characters, and who, 1 to 128, for history; null: no reason,
and the login. p_idempotency_key: 1 to 255 characters; the same call with the same key returns the
same item.
Errors: RV201 the sku is taken (detail names the item that has it), RV205 all item_ids are used up,
RV302 a value is out of range, RV304 the key was used for another request.$$;

create or replace function flashsale.next_item_id() returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_item_id constant integer :=
    nextval(pg_get_serial_sequence('flashsale_data.items', 'item_id'));
begin
  if v_item_id >= 134217728 then -- ids of orders must stay below those of payments
    raise exception 'There is no room for another item.' using
      errcode = 'RV205', constraint = 'too_many_items', detail = format('item_id %s', v_item_id),
      hint = 'All 134217727 item_ids have been given out: use another database.';
  end if;
  return v_item_id;
end
$$;

comment on function flashsale.next_item_id() is
$$The item_id of a new item
Errors: RV205 all item_ids are used up.$$;

create or replace function flashsale.raise_sku_taken(p_sku text) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'There is already an item with this sku.' using
    errcode = 'RV201', constraint = 'sku_taken',
    detail = format('sku %L, item_id %s', p_sku, (
      select i.item_id from flashsale_data.items i where i.sku = p_sku)),
    hint = 'Choose another sku, or change the item that has it.';
end
$$;

comment on function flashsale.raise_sku_taken(text) is
$$Raises RV201: another item has this sku; detail names it$$;

create or replace function flashsale.product_id_of(p_product text, p_item_id integer)
returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
  insert into flashsale_data.products (product, product_id)
  select p_product, p_item_id where p_product is not null
  on conflict (product) do nothing;
  return (select p.product_id from flashsale_data.products p where p.product = p_product);
end
$$;

comment on function flashsale.product_id_of(text, integer) is
$$The id of a product: that of its first item, which may be this one
Null: the item has no product.$$;

-- The other forms of create_item are for times that are written as literals, which get here as
-- texts. Which form a call gets is decided by Postgres: for an argument without a type it prefers a
-- form that takes a text, and it prefers text to varchar. So there is exactly one form for each
-- set of times that are literals: p_opens_at, p_closes_at or both. A time that is no literal is a
-- moment in each form. Other arguments, and their defaults, are the same; a test compares them.
create or replace function flashsale.create_item(
  p_sku text,
  p_name text,
  p_price bigint,
  p_currency text,
  p_stock integer,
  p_hold_seconds integer,
  p_opens_at text,
  p_closes_at flashsale.moment default null,
  p_max_waiting integer default null,
  p_late_payment text default 'refund',
  p_settle_seconds integer default 2,
  p_refund_seconds integer default null,
  p_max_per_order integer default 1,
  p_max_per_customer integer default null,
  p_product text default null,
  p_draw boolean default false,
  p_reason text default null,
  p_staff text default null,
  p_idempotency_key text default null)
returns flashsale.item_status
language sql volatile security definer set search_path = pg_catalog, pg_temp
as $$
  select flashsale.create_item(
    p_sku, p_name, p_price, p_currency, p_stock, p_hold_seconds, flashsale.moment_of(p_opens_at),
    p_closes_at, p_max_waiting, p_late_payment, p_settle_seconds,
    p_refund_seconds, p_max_per_order, p_max_per_customer, p_product, p_draw, p_reason, p_staff,
    p_idempotency_key)
$$;

comment on function flashsale.create_item(
  text, text, bigint, text, integer, integer, text, flashsale.moment, integer, text, integer,
  integer, integer, integer, text, boolean, text, text, text) is
$$create_item, with p_opens_at as a text
Errors: as in create_item, RV201, RV205, RV304 and RV302, which also a time without its time zone
gets.$$;

create or replace function flashsale.create_item(
  p_sku text,
  p_name text,
  p_price bigint,
  p_currency text,
  p_stock integer,
  p_hold_seconds integer,
  p_closes_at varchar, -- a text, if p_opens_at is not one
  p_opens_at flashsale.moment default null,
  p_max_waiting integer default null,
  p_late_payment text default 'refund',
  p_settle_seconds integer default 2,
  p_refund_seconds integer default null,
  p_max_per_order integer default 1,
  p_max_per_customer integer default null,
  p_product text default null,
  p_draw boolean default false,
  p_reason text default null,
  p_staff text default null,
  p_idempotency_key text default null)
returns flashsale.item_status
language sql volatile security definer set search_path = pg_catalog, pg_temp
as $$
  select flashsale.create_item(
    p_sku, p_name, p_price, p_currency, p_stock, p_hold_seconds, p_opens_at,
    flashsale.moment_of(p_closes_at), p_max_waiting, p_late_payment, p_settle_seconds,
    p_refund_seconds, p_max_per_order, p_max_per_customer, p_product, p_draw, p_reason, p_staff,
    p_idempotency_key)
$$;

comment on function flashsale.create_item(
  text, text, bigint, text, integer, integer, varchar, flashsale.moment, integer, text, integer,
  integer, integer, integer, text, boolean, text, text, text) is
$$create_item, with p_closes_at as a text: name the argument
Errors: as in create_item, RV201, RV205, RV304 and RV302, which also a time without its time zone
gets.$$;

create or replace function flashsale.create_item(
  p_sku text,
  p_name text,
  p_price bigint,
  p_currency text,
  p_stock integer,
  p_hold_seconds integer,
  p_opens_at text,
  p_closes_at text,
  p_max_waiting integer default null,
  p_late_payment text default 'refund',
  p_settle_seconds integer default 2,
  p_refund_seconds integer default null,
  p_max_per_order integer default 1,
  p_max_per_customer integer default null,
  p_product text default null,
  p_draw boolean default false,
  p_reason text default null,
  p_staff text default null,
  p_idempotency_key text default null)
returns flashsale.item_status
language sql volatile security definer set search_path = pg_catalog, pg_temp
as $$
  select flashsale.create_item(
    p_sku, p_name, p_price, p_currency, p_stock, p_hold_seconds, flashsale.moment_of(p_opens_at),
    flashsale.moment_of(p_closes_at), p_max_waiting, p_late_payment, p_settle_seconds,
    p_refund_seconds, p_max_per_order, p_max_per_customer, p_product, p_draw, p_reason, p_staff,
    p_idempotency_key)
$$;

comment on function flashsale.create_item(
  text, text, bigint, text, integer, integer, text, text, integer, text, integer,
  integer, integer, integer, text, boolean, text, text, text) is
$$create_item, with both times as texts
Errors: as in create_item, RV201, RV205, RV304 and RV302, which also a time without its time zone
gets.$$;
