-- reserve handles a request for a unit. It is the hot path: it reads the item's row without a lock,
-- takes a ticket from the item's sequence and inserts one order. It locks nothing that another
-- customer's request needs.
-- What it reads of the item may be a moment old. That is safe because now_serving only grows: an
-- old value can make somebody wait a moment longer, but it can never oversell.
--
-- This file handles one request; reserve_many.sql does the same for up to 1,000 at once. Both use
-- the first functions here. These are plain SQL without settings, so the planner inlines them into
-- the statements that use them, and they cost nothing.

create or replace function flashsale.ticket_limit_for(
  p_wait boolean, p_now_serving integer, p_gaps integer, p_max_waiting integer)
returns integer
language sql immutable parallel safe
as $$
  select case
    when p_wait is false then p_now_serving
    when p_max_waiting is null then 2000000000
    else least(2000000000, p_now_serving + p_gaps + p_max_waiting) -- no more than 2.02 * 10^9
  end
$$;

comment on function flashsale.ticket_limit_for(boolean, integer, integer, integer) is
$$The last ticket of an item that may be given out to a request
A request that does not want to wait (p_wait false) gets none beyond now_serving. After 2 * 10^9
tickets the line is full: far below the last number of its sequence, which would be an error.$$;

create or replace function flashsale.is_request(p_customer_id text, p_idempotency_key text)
returns boolean
language sql immutable parallel safe
as $$
  select (flashsale.is_id(p_customer_id, 128)
    and (p_idempotency_key is null or flashsale.is_id(p_idempotency_key, 255))) is true
$$;

comment on function flashsale.is_request(text, text) is
$$Whether these can be the customer and the key of a request
A customer has 1 to 128 characters of printable ASCII, an idempotency key 1 to 255 or is null.$$;

create or replace function flashsale.key_of(
  p_item_id integer, p_customer_id text, p_idempotency_key text)
returns setof flashsale_data.order_keys
language sql stable rows 1
as $$
  select k.*
  from flashsale_data.order_keys k
  where k.customer_id = p_customer_id
    and k.item_id = p_item_id
    and k.idempotency_key = p_idempotency_key
$$;

comment on function flashsale.key_of(integer, text, text) is
$$What an Idempotency-Key asked for and led to before; no row: it is new$$;

-- Looks up everything about a request that can be known before it takes a ticket.
create or replace function flashsale.look_up(
  p_item_id integer,
  p_customer_id text,
  p_idempotency_key text,
  p_is_special boolean, -- it asks for several units, or its key is known already
  p_wait boolean,
  p_now timestamptz)
returns table (
  outcome text,    -- what the answer will be; null: not decided yet
  order_id bigint, -- the order that the customer has already
  line regclass,
  now_serving integer,
  ticket_limit integer,
  hold_seconds integer,
  price bigint,
  currency text,
  opens_at timestamptz,
  gaps_in_line integer,
  product_id integer,
  is_special boolean)
language sql stable rows 1
as $$
  select
    case
      when p_is_special or i.counts_units then 'special'
      when not flashsale.is_request(p_customer_id, p_idempotency_key) then 'invalid'
      when o.order_id is null then coalesce(
        case when i.draw is not null then flashsale.answer_of_draw(
          i.draw, i.opens_at, i.closes_at, i.paused, p_wait, p_now) end,
        flashsale.shut_by(i.opens_at, i.closes_at, i.paused, p_now),
        case
          when coalesce(pg_sequence_last_value(i.line), 0) >= t.ticket_limit then 'sold_out'
        end)
      when p_idempotency_key is null and not (o.status = 'reserved' and o.expires_at <= p_now)
        then 'existing'
    end,
    o.order_id,
    i.line, i.now_serving, t.ticket_limit, i.hold_seconds, i.price, i.currency, i.opens_at,
    i.gaps_in_line, i.product_id, i.counts_units or p_is_special
  from flashsale_data.items i
  cross join lateral (
    select flashsale.ticket_limit_for(p_wait, i.now_serving, i.gaps_in_line, i.max_waiting)
      as ticket_limit
  ) t
  left join flashsale_data.orders o
    on coalesce(o.product_id, o.item_id) = p_item_id and o.customer_id = p_customer_id
      and o.ended_at is null and o.may_buy_again is null
  where i.item_id = p_item_id
$$;

comment on function flashsale.look_up(integer, text, text, boolean, boolean, timestamptz) is
$$What is known of a request for a unit before it takes a ticket
No row: there is no such item. If outcome is special, look_up_special decides, because this takes
more than one look: several units, a known key, a product, or a limit above 1. If outcome is null,
a request without an order_id may take a ticket;
with one, the customer has this order, but something has to be done first: end it, if it is a hold
past its deadline, or else record the new key.$$;

create or replace function flashsale.new_order(
  p_item_id integer,
  p_ticket integer,
  p_customer_id text,
  p_now timestamptz,
  p_expires_at timestamptz)
returns table (
  order_id bigint,
  item_id integer,
  ticket integer,
  customer_id text,
  status flashsale_data.order_status,
  created_at timestamptz,
  reserved_at timestamptz,
  expires_at timestamptz)
language sql stable rows 1
as $$
  select
    flashsale.order_id_of(p_item_id, p_ticket), p_item_id, p_ticket, p_customer_id,
    case
      when p_expires_at is null then 'waiting'::flashsale_data.order_status
      else 'reserved'
    end,
    p_now,
    case when p_expires_at is not null then p_now end,
    p_expires_at
$$;

comment on function flashsale.new_order(integer, integer, text, timestamptz, timestamptz) is
$$The row of a new order: reserved until p_expires_at, or waiting
p_expires_at null: it is waiting.$$;

-- The insert of an order may wait for a duplicate of the request in another transaction. If that
-- rolls back, the insert goes on, with a deadline that was computed before the wait. Such holds
-- begin anew, by the clock after the wait. All others are spared the update, so a hold may be a
-- fifth of a second shorter than hold_seconds.
create or replace function flashsale.is_late(p_then timestamptz, p_now timestamptz) returns boolean
language sql immutable parallel safe
as $$ select p_now - p_then > interval '0.2 seconds' $$;

comment on function flashsale.is_late(timestamptz, timestamptz) is
$$Whether so much time has passed that a new hold has to begin anew$$;

create or replace function flashsale.restart_holds(p_order_ids bigint[]) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_now constant timestamptz := flashsale.clock();
begin
  update flashsale_data.orders o
  set created_at = v_now, reserved_at = v_now, expires_at = v_now + (o.expires_at - o.reserved_at)
  where o.order_id = any (p_order_ids) and o.status = 'reserved';
end
$$;

comment on function flashsale.restart_holds(bigint[]) is
$$Gives holds that were just inserted their full window from now on$$;

-- The answers of reserve alone: rows that are made without reading anything again. These functions
-- are plain SQL without settings too.
create or replace function flashsale.refused(
  p_outcome text, p_item_id integer, p_customer_id text, p_opens_at timestamptz)
returns flashsale.order_row
language sql immutable parallel safe
as $$
  select row(
    p_outcome, null, p_item_id, p_customer_id, null, null, null, null, null, null, null, null,
    null, null, null, null, null,
    case when p_outcome = 'not_open' then p_opens_at end, null, null, null, null, null, null
  )::flashsale.order_row
$$;

comment on function flashsale.refused(text, integer, text, timestamptz) is
$$The answer to a request that gets no order
retry_at: when the sale opens, for not_open.$$;

create or replace function flashsale.reserved(
  p_order_id bigint,
  p_item_id integer,
  p_customer_id text,
  p_now timestamptz,
  p_expires_at timestamptz,
  p_price bigint,
  p_currency text)
returns flashsale.order_row
language sql immutable parallel safe
as $$
  select row(
    'reserved', p_order_id, p_item_id, p_customer_id, 'reserved', flashsale.ticket_of(p_order_id),
    null, p_now, p_now, p_expires_at, null, null, p_order_id, 'requested', p_price, p_currency,
    null, null, null, null, 1, 1, null, null)::flashsale.order_row
$$;

comment on function flashsale.reserved(
  bigint, integer, text, timestamptz, timestamptz, bigint, text) is
$$The answer to a request that has just got a unit$$;

create or replace function flashsale.waiting(
  p_order_id bigint,
  p_item_id integer,
  p_customer_id text,
  p_now timestamptz,
  p_now_serving integer,
  p_gaps_in_line integer)
returns flashsale.order_row
language sql immutable parallel safe
as $$
  select row(
    'waiting', p_order_id, p_item_id, p_customer_id, 'waiting', flashsale.ticket_of(p_order_id),
    greatest(1, flashsale.ticket_of(p_order_id) - p_now_serving - p_gaps_in_line), p_now, null,
    null, null, null, null, null, null, null, null, null, null, null, 1, null, null,
    null)::flashsale.order_row
$$;

comment on function flashsale.waiting(bigint, integer, text, timestamptz, integer, integer) is
$$The answer to a request that has just joined the line
The position is as of the last sweep, and it counts tickets. To count the orders would cost more
than the rest of the request. For the same reason there is no forecast.$$;

-- Nearly every request is of one of three kinds: a new customer's, a repeated one, or one that is
-- refused. A few plain statements answer these. All other requests go to reserve_many as a batch of
-- one, which takes several times as long, because its plans have many nodes to start and to end.
-- For the same reason there are few expressions here, and the variables are scalars: Postgres sets
-- up each expression anew in each transaction, which costs as much as an index probe.
--
-- The transaction gets its id before it takes a ticket. fill relies on that.
create or replace function flashsale.reserve(
  p_item_id integer, p_customer_id text, p_idempotency_key text default null,
  p_wait boolean default true, p_quantity integer default 1, p_min_quantity integer default null)
returns flashsale.order_row language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
  v_now constant timestamptz := flashsale.clock();
  v_outcome text;
  v_line regclass;
  v_now_serving integer;
  v_ticket_limit integer;
  v_hold_seconds integer;
  v_price bigint;
  v_currency text;
  v_opens_at timestamptz;
  v_gaps integer; -- in the line
  v_ticket integer;
  v_order_id bigint; -- until look_up: that of the key
  v_expires_at timestamptz; -- of the new order, if it is a hold that begins now
begin
  if p_idempotency_key is not null then
    select k.order_id into v_order_id
    from flashsale.key_of(p_item_id, p_customer_id, p_idempotency_key) k;
  end if;
  select l.outcome, l.order_id, l.line, l.now_serving, l.ticket_limit, l.hold_seconds, l.price,
    l.currency, l.opens_at, l.gaps_in_line
  into v_outcome, v_order_id, v_line, v_now_serving, v_ticket_limit, v_hold_seconds, v_price,
    v_currency, v_opens_at, v_gaps
  from flashsale.look_up(p_item_id, p_customer_id, p_idempotency_key,
    p_quantity <> 1 or p_min_quantity <> 1 or v_order_id is not null, p_wait, v_now) l;
  if v_outcome is null and v_order_id is null then
    v_ticket := case when pg_current_xact_id() is not null then nextval(v_line) end;
  elsif v_outcome = 'existing' then
    return (select r from flashsale.as_row(v_order_id, 'existing') r);
  elsif v_outcome in ('closed', 'paused', 'not_open', 'sold_out') then
    return flashsale.refused(v_outcome, p_item_id, p_customer_id, v_opens_at);
  end if;
  if v_ticket <= v_ticket_limit then
    if p_idempotency_key is not null then
      insert into flashsale_data.order_keys (customer_id, item_id, idempotency_key, order_id, wait)
      values (p_customer_id, p_item_id, p_idempotency_key,
        flashsale.order_id_of(p_item_id, v_ticket), p_wait is not false) on conflict do nothing;
      if not found then -- a duplicate of this request came first
        return flashsale.reserve_in_batch(
          p_item_id, p_customer_id, p_idempotency_key, p_wait, p_quantity, p_min_quantity);
      end if;
    end if;
    insert into flashsale_data.orders as o (
      order_id, item_id, ticket, customer_id, status, created_at, reserved_at, expires_at)
    select n.* from flashsale.new_order(p_item_id, v_ticket, p_customer_id, v_now,
      case when v_ticket <= v_now_serving then v_now + v_hold_seconds * interval '1 second' end) n
    on conflict (coalesce(product_id, item_id), customer_id)
      where ended_at is null and may_buy_again is null do nothing
    returning o.order_id, case when not flashsale.is_late(v_now, flashsale.clock())
      then o.expires_at end into v_order_id, v_expires_at;
    if v_expires_at is not null then
      insert into pgmq.q_payments (vt, message) -- as enqueue_payment_jobs does
      values (clock_timestamp(), jsonb_build_object('kind', 'open', 'payment_id', v_order_id));
      return flashsale.reserved(
        v_order_id, p_item_id, p_customer_id, v_now, v_expires_at, v_price, v_currency);
    elsif v_order_id is not null and v_ticket > v_now_serving then
      return flashsale.waiting(v_order_id, p_item_id, p_customer_id, v_now, v_now_serving, v_gaps);
    elsif v_order_id is not null then -- it has waited for a duplicate, which rolled back
      return flashsale.reserved_after_a_wait(v_order_id);
    end if;
  end if;
  return flashsale.reserve_in_batch(
    p_item_id, p_customer_id, p_idempotency_key, p_wait, p_quantity, p_min_quantity);
end
$$;

comment on function flashsale.reserve(integer, text, text, boolean, integer, integer) is
$$Requests units of an item: a reservation, or a place in the line
p_customer_id: 1 to 128 characters of printable ASCII, without spaces at the ends.
p_idempotency_key: 1 to 255 such characters or null; the same item, customer and key always get the
same order, if they ask for the same. p_wait: false refuses rather than join the line or a draw.
p_quantity: how many units, 1 up to the item's max_per_order.
p_min_quantity: with fewer the customer would rather have none, 1 to p_quantity; null: they want all
of them.
Outcomes: reserved; waiting; entered (a draw, before it opens); existing (the order that the
customer already has; if they have paid for all that they may have, the latest of those). These take
no ticket and write nothing: not_open (retry_at says when it opens), closed, paused, sold_out (or
the line is full), has_other_order (the customer has an open order of another item of this product:
order_id), too_many (more than max_per_order, or than max_per_customer leaves), key_reused (the key
asked for something else before). Errors: RV101 unknown item, RV301 a customer or key that is too
short or too long, or a quantity that is not possible, 40001 too many requests of this customer met:
call again.$$;

create or replace function flashsale.reserved_after_a_wait(p_order_id bigint)
returns flashsale.order_row
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
  perform flashsale.restart_holds(array[p_order_id]);
  perform flashsale.enqueue_payment_jobs('open', array[p_order_id]);
  return flashsale.answer(p_order_id, 'reserved');
end
$$;

comment on function flashsale.reserved_after_a_wait(bigint) is
$$The rest of reserve: a hold whose insert has waited for a duplicate$$;

create or replace function flashsale.reserve_in_batch(
  p_item_id integer, p_customer_id text, p_idempotency_key text, p_wait boolean,
  p_quantity integer, p_min_quantity integer)
returns flashsale.order_row
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_row flashsale.order_row;
begin
  perform flashsale.release_keys(
    array[p_item_id], array[p_customer_id], array[p_idempotency_key], array[null]);
  select * into v_row from flashsale.reserve_many(
    array[p_item_id], array[p_customer_id], array[p_idempotency_key], array[p_wait],
    array[p_quantity], array[p_min_quantity]);
  if v_row.outcome = 'unknown_item' then
    perform flashsale.raise_unknown_item(p_item_id);
  elsif v_row.outcome = 'invalid' then
    raise exception 'This is not a request for a unit.' using
      errcode = 'RV301', constraint = 'bad_value',
      detail = format(
        'item_id %s, a customer of %s characters, a key of %s characters, %s units, at least %s',
        p_item_id, coalesce(length(p_customer_id), 0), coalesce(length(p_idempotency_key), 0),
        p_quantity, p_min_quantity),
      hint = 'Customers have 1 to 128 characters of printable ASCII, idempotency keys 1 to 255, '
        'and neither has spaces at its ends. quantity is at least 1, min_quantity is 1 to '
        'quantity.';
  end if;
  return v_row;
end
$$;

comment on function flashsale.reserve_in_batch(integer, text, text, boolean, integer, integer) is
$$The rest of reserve: a request that needs more than plain statements
Errors: RV101 unknown item, RV301 it can't be a request, and 40001 from reserve_many.$$;
