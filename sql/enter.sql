-- Entering a draw. An item with a draw takes entries until it opens, instead of giving out tickets.
-- An entry is an order with the status `entered`. Its number in the line is above all tickets, so
-- the line never reaches it; when it is drawn, its row gets the order_id of its ticket. The entry's
-- order_id stays valid for ever: verbs and reads find the order by either id, and show the entry's.
--
-- look_up says `entered` for a request that comes before the opening. reserve_many then calls
-- enter, which looks again: see entries_are_in for the reason.

-- This has a setting, so that it is not inlined: requests for items without a draw don't pay for
-- setting up its expression.
create or replace function flashsale.answer_of_draw(
  p_draw flashsale_data.draw_state,
  p_opens_at timestamptz,
  p_closes_at timestamptz,
  p_paused boolean,
  p_wait boolean,
  p_now timestamptz)
returns text
language sql immutable set search_path = pg_catalog, pg_temp
as $$
  select case
    when (p_draw in ('entering', 'listing')) is not true then null
    when flashsale.shut_by(null, p_closes_at, p_paused, p_now) is not null then
      flashsale.shut_by(null, p_closes_at, p_paused, p_now)
    when p_draw = 'entering' and p_opens_at > p_now and p_wait is not false then 'entered'
    else 'not_open'
  end
$$;

comment on function flashsale.answer_of_draw(
  flashsale_data.draw_state, timestamptz, timestamptz, boolean, boolean, timestamptz) is
$$What a draw answers to a request: entered, or why not
Null: the tickets of the draw are taken, so requests get the tickets after them. not_open: the
entries have ended and those tickets are not taken yet, or the request does not want to wait.$$;

create or replace function flashsale.is_entry(p_order_id bigint) returns boolean
language sql immutable parallel safe
as $$ select (p_order_id & 4294967295) > 2000000000 $$;

comment on function flashsale.is_entry(bigint) is
$$Whether this id is that of an entry of a draw, and not of a ticket$$;

create or replace function flashsale.current_id(p_order_id bigint) returns bigint
language sql stable
as $$
  select case
    when flashsale.is_entry(p_order_id) then coalesce((
      select d.order_id from flashsale_data.drawn_entries d where d.entry_id = p_order_id),
      p_order_id)
    else p_order_id
  end
$$;

comment on function flashsale.current_id(bigint) is
$$The id that the row of an order has now: of an entry that was drawn$$;

create or replace function flashsale.shown_id(p_order_id bigint) returns bigint
language sql stable
as $$
  select coalesce((
    select d.entry_id from flashsale_data.drawn_entries d where d.order_id = p_order_id),
    p_order_id)
$$;

comment on function flashsale.shown_id(bigint) is
$$The id that its customer knows: of the entry, if it was drawn$$;

-- Whoever waits for an entry that is just being drawn finds no row under its old id after that.
-- Once this function has locked an entry, it can't be drawn until the transaction ends.
create or replace function flashsale.lock_entry(p_order_id bigint) returns bigint
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
  if flashsale.is_entry(p_order_id) then
    perform from flashsale_data.orders o where o.order_id = p_order_id for update;
    if not found then
      return flashsale.current_id(p_order_id);
    end if;
  end if;
  return p_order_id;
end
$$;

comment on function flashsale.lock_entry(bigint) is
$$The id under which a verb finds an order, whatever id its caller knows
Of an entry that was not drawn yet, the order is locked.$$;

create or replace function flashsale.enter(
  p_item_ids integer[], p_customer_ids text[], p_idempotency_keys text[],
  p_quantities integer[], p_min_quantities integer[],
  p_product_ids integer[],
  inout outcomes text[],
  inout order_ids bigint[])
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz;
  v_entered bigint[];
begin
  perform pg_current_xact_id(); -- before the terms and the clock are read: see entries_are_in
  if current_setting('transaction_isolation') <> 'read committed' then
    perform from flashsale_data.items i -- an error if they have changed since the snapshot
    where i.item_id = any (p_item_ids) and i.draw is not null
    order by i.item_id
    for share;
  end if;
  v_now := flashsale.clock();
  with asked as (
    select r.*, coalesce(r.known_id, n.new_id) as order_id, n.new_id
    from rows from (
      unnest(p_item_ids), unnest(p_customer_ids), unnest(p_idempotency_keys),
      unnest(p_quantities), unnest(p_min_quantities), unnest(p_product_ids), unnest(outcomes),
      unnest(order_ids)
    ) with ordinality r (
      item_id, customer_id, idempotency_key, quantity, min_quantity, product_id, outcome, known_id,
      ord)
    cross join lateral (
      select case when r.outcome = 'entered' and r.known_id is null
        then flashsale.new_entry(r.item_id, v_now) end as new_id
    ) n
  ), claimed as (
    insert into flashsale_data.order_keys (
      customer_id, item_id, idempotency_key, order_id, quantity, min_quantity, wait)
    select a.customer_id, a.item_id, a.idempotency_key, a.new_id, a.quantity, a.min_quantity, true
    from asked a
    where a.idempotency_key is not null and a.new_id is not null
    order by a.item_id, a.customer_id, a.idempotency_key
    on conflict do nothing
    returning order_id
  ), placed as (
    insert into flashsale_data.orders (
      order_id, item_id, ticket, customer_id, status, created_at, product_id, quantity,
      min_quantity)
    select
      a.new_id, a.item_id, flashsale.ticket_of(a.new_id), a.customer_id, 'entered', v_now,
      a.product_id, nullif(a.quantity, 1),
      case when a.quantity > 1 then coalesce(a.min_quantity, a.quantity) end
    from asked a
    where a.new_id is not null
      and (a.idempotency_key is null or a.new_id in (select c.order_id from claimed c))
    order by a.item_id, a.customer_id, a.ord
    on conflict (coalesce(product_id, item_id), customer_id)
      where ended_at is null and may_buy_again is null do nothing
    returning order_id
  )
  select
    array_agg(
      case when a.new_id is null and (a.outcome <> 'entered' or a.known_id is not null)
        or a.new_id in (select p.order_id from placed p) then a.outcome end order by a.ord),
    array_agg(a.order_id order by a.ord),
    (select array_agg(p.order_id order by p.order_id) from placed p)
  into outcomes, order_ids, v_entered
  from asked a;
  perform flashsale.note_entries(v_entered);
end
$$;

comment on function flashsale.enter(
  integer[], text[], text[], integer[], integer[], integer[], text[], bigint[]) is
$$Places the keys and the orders of requests that enter a draw
Those whose outcome is `entered` and that have no order yet. outcomes: entered; null if the entries
have ended, or a duplicate of the request came first, so that it has to be looked up again.$$;

create or replace function flashsale.new_entry(p_item_id integer, p_now timestamptz)
returns bigint
language sql volatile set search_path = pg_catalog, pg_temp
as $$
  select flashsale.order_id_of(
    p_item_id, nextval('flashsale_data.entry_numbers'::regclass)::integer)
  from flashsale_data.items i
  where i.item_id = p_item_id and 'entered' = flashsale.answer_of_draw(
    i.draw, i.opens_at, i.closes_at, i.paused, true, p_now)
$$;

comment on function flashsale.new_entry(integer, timestamptz) is
$$The id of another entry; null: the item takes no entries at p_now$$;

create or replace function flashsale.note_entries(p_order_ids bigint[]) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
  insert into flashsale_data.tallies (item_id, paid, gaps_in_line, entered)
  select flashsale.item_of(p.order_id), 0, 0, count(*)
  from unnest(p_order_ids) p (order_id)
  group by flashsale.item_of(p.order_id);
  perform
    flashsale.enqueue_mail('entered', p_order_ids),
    flashsale.note_orders('order.entered', p_order_ids, flashsale.clock());
end
$$;

comment on function flashsale.note_entries(bigint[]) is
$$Counts entries that were just placed, and tells their customers$$;
