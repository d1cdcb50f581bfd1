-- reserve_many handles up to 1,000 requests for units at once, with the same results as reserve. In
-- a storm the service gathers the requests that arrive while a call is under way, and sends them
-- here in one call.
--
-- A call works in rounds of two statements over the requests that are not decided yet:
--   take_tickets   looks up what is known of each, and takes tickets in the order of the requests;
--   place_orders   inserts the keys, the orders and the payment jobs.
-- The first round decides everything, with three exceptions: a customer has two requests in the
-- batch, an order of the customer is in the way of their request (end_overdue), or a duplicate of a
-- request came first in another transaction. A statement that has waited for a duplicate does not
-- see what the duplicate did, but the next statement does. So the next round decides these
-- requests.
--
-- The state is a few arrays with one element per request. A null outcome means: not decided yet.
create or replace function flashsale.reserve_many(
  p_item_ids integer[], p_customer_ids text[], p_idempotency_keys text[] default null,
  p_waits boolean[] default null, p_quantities integer[] default null,
  p_min_quantities integer[] default null)
returns setof flashsale.order_row
language plpgsql security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set plan_cache_mode = force_generic_plan
as $$
declare
  v_began_at constant timestamptz := flashsale.clock();
  v_now timestamptz := v_began_at;
  v_outcomes text[];
  v_order_ids bigint[];         -- the orders that the customers have
  v_new_ids bigint[];           -- the orders that the tickets of this round bring
  v_deadlines timestamptz[];    -- ... and until when their units are held; null: in the line
  v_product_ids integer[];      -- of the items
  v_groups flashsale_data.group_tickets[]; -- ... and all tickets of orders for several units
  v_overdue_ids bigint[];       -- orders that are in the way
  v_cleared_ids bigint[];       -- ... and those that are not any more
  v_placed_at timestamptz;      -- when the new orders were placed; null: not all in the first round
  -- One round is the rule, and two or three the exception. More are needed only if duplicates of
  -- these requests come and go in other transactions all the time: then the caller is to try again.
  v_rounds constant integer := 10;
begin
  perform flashsale.check_batch(
    p_item_ids, p_customer_ids, p_idempotency_keys, p_waits, p_quantities, p_min_quantities);
  for v_round in 1..v_rounds loop
    select t.* into v_outcomes, v_order_ids, v_new_ids, v_deadlines, v_product_ids, v_groups,
      v_overdue_ids
    from flashsale.take_tickets(
      p_item_ids, p_customer_ids, p_idempotency_keys, p_waits, p_quantities, p_min_quantities,
      v_now, v_cleared_ids, v_outcomes, v_order_ids) t;
    if v_overdue_ids is not null then
      perform flashsale.end_overdue(v_overdue_ids);
      v_cleared_ids := v_cleared_ids || v_overdue_ids;
      v_now := flashsale.clock(); -- end_overdue may have waited for a lock
      continue;
    elsif 'entered' = any (v_outcomes) then
      select e.* into v_outcomes, v_order_ids
      from flashsale.enter(
        p_item_ids, p_customer_ids, p_idempotency_keys, p_quantities, p_min_quantities,
        v_product_ids, v_outcomes, v_order_ids) e;
    end if;
    v_placed_at := case when v_round = 1 and v_groups is null then v_now end;
    select p.* into v_outcomes, v_order_ids
    from flashsale.place_orders(
      p_item_ids, p_customer_ids, p_idempotency_keys, p_waits, p_quantities, p_min_quantities,
      v_product_ids, v_new_ids, v_deadlines, v_now, v_outcomes, v_order_ids) p;
    if v_groups is not null then
      perform flashsale.place_parts(v_groups, v_now);
    end if;
    exit when array_position(v_outcomes, null) is null;
    perform flashsale.release_keys(p_item_ids, p_customer_ids, p_idempotency_keys, v_outcomes);
    v_now := flashsale.clock(); -- place_orders may have waited for a duplicate
  end loop;

  if array_position(v_outcomes, null) is not null then
    raise exception 'Too many requests of these customers met; nothing was done.' using
      errcode = '40001', hint = 'Call again.';
  elsif flashsale.is_late(v_began_at, flashsale.clock()) then -- it has waited for somebody
    perform flashsale.restart_holds(array(
      select r.order_id from unnest(v_outcomes, v_order_ids) r (outcome, order_id)
      where r.outcome = 'reserved'));
    v_placed_at := null;
  end if;
  return query select a.* from flashsale.answers(
    p_item_ids, p_customer_ids, v_outcomes, v_order_ids, v_deadlines, v_placed_at) a;
end
$$;

comment on function flashsale.reserve_many(
  integer[], text[], text[], boolean[], integer[], integer[]) is
$$Requests units for each of up to 1,000 customers
One row per request, in the order of the requests. p_customer_ids: 1 to 128 characters of printable
ASCII, without spaces at the ends. p_idempotency_keys: 1 to 255 such characters or null; the same
item, customer and key always get the same order, if they ask for the same. p_waits: false refuses
rather than join the line or a draw.
p_quantities: how many units, 1 up to the item's max_per_order; null: 1. p_min_quantities: with
fewer the customer would rather have none, 1 to the quantity; null: they want all of them.
Outcomes: reserved, waiting, entered (a draw, before it opens); existing (the order that the
customer already has; if they have paid for all that they may have, the latest of those). These take
no ticket and write nothing: not_open (retry_at), closed, paused, sold_out (also: the line is full),
has_other_order (the customer has an open order of another item of this product: order_id), too_many
(more than max_per_order, or than max_per_customer leaves), key_reused (the key asked for something
else before), unknown_item and invalid (such a request fails alone).
Errors: RV301 arrays that do not fit together; 40001 too many requests of these customers met, and
nothing was done: call again.$$;

create or replace function flashsale.check_batch(
  p_item_ids integer[], p_customer_ids text[], p_idempotency_keys text[], p_waits boolean[],
  p_quantities integer[], p_min_quantities integer[])
returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
declare
  v_size constant integer := coalesce(cardinality(p_item_ids), 0);
begin
  if v_size > 1000
    or v_size <> coalesce(cardinality(p_customer_ids), 0)
    or v_size <> coalesce(cardinality(p_idempotency_keys), v_size)
    or v_size <> coalesce(cardinality(p_waits), v_size)
    or v_size <> coalesce(cardinality(p_quantities), v_size)
    or v_size <> coalesce(cardinality(p_min_quantities), v_size)
  then
    raise exception 'A batch needs arrays of one length, at most 1000.' using
      errcode = 'RV301', constraint = 'bad_batch',
      detail = format('%s items, %s customers, %s keys, %s waits, %s quantities, %s minima',
        cardinality(p_item_ids), cardinality(p_customer_ids), cardinality(p_idempotency_keys),
        cardinality(p_waits), cardinality(p_quantities), cardinality(p_min_quantities)),
      hint = 'Split the batch, or leave out the arrays that you do not need.';
  end if;
end
$$;

comment on function flashsale.check_batch(
  integer[], text[], text[], boolean[], integer[], integer[]) is
$$Raises RV301 if the arrays of a batch do not fit together$$;

-- How much a customer may have is decided here. This is exact at any number of requests, payments
-- and refunds at the same moment, because each customer has at most one order in the index
-- orders_one_open_per_customer: the open one, or else the last one that is paid. So a request that
-- did not see another one meets its order there, whatever has become of it.
-- A paid order that leaves room for more is locked first, and marked, so that it leaves the index
-- (end_overdue). What is paid is counted after that, by the next round. A caller whose snapshot is
-- too old for that gets a serialization failure, because the row was changed after it.
create or replace function flashsale.look_up_special(
  p_item_id integer,
  p_customer_id text,
  p_idempotency_key text,
  p_key flashsale_data.order_keys, -- its row, if the key is known already
  p_wait boolean,
  p_quantity integer,
  p_min_quantity integer,
  p_now timestamptz,
  p_cleared_ids bigint[])
returns flashsale_data.special_request
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_item flashsale_data.items;
  v_open flashsale_data.orders;
  v_paid record;
  v_row flashsale_data.special_request;
begin
  select i.* into v_item from flashsale_data.items i where i.item_id = p_item_id;
  if not flashsale.is_request(p_customer_id, p_idempotency_key)
    or p_quantity < 1 or p_min_quantity not between 1 and p_quantity
  then
    v_row.outcome := 'invalid';
  elsif p_key.order_id is not null then
    v_row.outcome := case when flashsale.is_same_request(p_key, p_wait, p_quantity, p_min_quantity)
      then 'existing' else 'key_reused' end;
    v_row.order_id := case when v_row.outcome = 'existing' then p_key.order_id end;
  end if;
  if v_row.outcome is not null then
    return v_row;
  end if;

  v_open := flashsale.open_order(coalesce(v_item.product_id, p_item_id), p_customer_id);
  if v_open.status <> 'paid' then
    v_row.order_id := v_open.order_id;
    v_row.outcome := case
      when v_open.status = 'reserved' and v_open.expires_at <= p_now then null -- is over
      when v_open.item_id <> p_item_id then 'has_other_order'
      when p_idempotency_key is null then 'existing'
    end;
    return v_row;
  end if;
  select * into v_paid
  from flashsale.paid_units(coalesce(v_item.product_id, p_item_id), p_customer_id);
  if v_paid.units >= coalesce(v_item.max_per_customer, v_item.max_per_order) then
    v_row.order_id := v_paid.last_order_id;
    v_row.outcome := case when p_idempotency_key is null then 'existing' end;
    return v_row;
  end if;
  v_row.outcome := flashsale.why_not(
    v_item, v_paid.units, p_wait, p_quantity, p_min_quantity, p_now);
  if coalesce(v_row.outcome, 'entered') = 'entered' and v_paid.last_order_id is not null
    and v_paid.last_order_id <> all (coalesce(p_cleared_ids, '{}'))
  then
    v_row.outcome := null;
    v_row.order_id := v_paid.last_order_id;
    v_row.in_the_way := true;
  end if;
  return v_row;
end
$$;

comment on function flashsale.look_up_special(
  integer, text, text, flashsale_data.order_keys, boolean, integer, integer, timestamptz, bigint[]
) is
$$What is known of a request for which look_up is not enough$$;

create or replace function flashsale.is_same_request(
  p_key flashsale_data.order_keys, p_wait boolean, p_quantity integer, p_min_quantity integer)
returns boolean
language sql immutable parallel safe
as $$
  select (coalesce(p_key.quantity, 1), coalesce(p_key.min_quantity, p_key.quantity, 1),
      coalesce(p_key.wait, p_wait is not false))
    = (p_quantity, p_min_quantity, p_wait is not false)
$$;

comment on function flashsale.is_same_request(
  flashsale_data.order_keys, boolean, integer, integer) is
$$Whether a request asks for the same as the first one with its key$$;

create or replace function flashsale.open_order(p_product_id integer, p_customer_id text)
returns flashsale_data.orders
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_order flashsale_data.orders;
begin
  select o.* into v_order
  from flashsale_data.orders o
  where coalesce(o.product_id, o.item_id) = p_product_id and o.customer_id = p_customer_id
    and o.ended_at is null and o.may_buy_again is null;
  return v_order;
end
$$;

comment on function flashsale.open_order(integer, text) is
$$A customer's open order of a product, or else their last paid one
p_product_id: the item of an item without a product. Null: they have none.$$;

create or replace function flashsale.paid_units(
  p_product_id integer, p_customer_id text, out units integer, out last_order_id bigint)
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
begin
  select
    coalesce(sum(coalesce(o.units, 1)), 0)::integer,
    (array_agg(o.order_id order by o.paid_at desc, o.order_id desc))[1]
  into units, last_order_id
  from flashsale_data.orders o
  where o.customer_id = p_customer_id and o.status = 'paid'
    and coalesce(o.product_id, o.item_id) = p_product_id;
end
$$;

comment on function flashsale.paid_units(integer, text) is
$$How many units of a product a customer has paid, and the last order$$;

create or replace function flashsale.why_not(
  p_item flashsale_data.items,
  p_paid integer,
  p_wait boolean,
  p_quantity integer,
  p_min_quantity integer,
  p_now timestamptz)
returns text
language sql volatile set search_path = pg_catalog, pg_temp
as $$
  select coalesce(
    nullif(d.answer, 'entered'),
    case when d.answer is null then
      flashsale.shut_by(p_item.opens_at, p_item.closes_at, p_item.paused, p_now) end,
    case
      when p_quantity > p_item.max_per_order
        or p_paid + p_quantity > coalesce(p_item.max_per_customer, p_item.max_per_order)
        then 'too_many'
      when d.answer is not null then d.answer
      when coalesce(pg_sequence_last_value(p_item.line), 0)
        + case when p_wait is false then p_min_quantity else p_quantity end
        > flashsale.ticket_limit_for(
          p_wait, p_item.now_serving, p_item.gaps_in_line, p_item.max_waiting)
        then 'sold_out'
    end)
  from flashsale.answer_of_draw(
    p_item.draw, p_item.opens_at, p_item.closes_at, p_item.paused, p_wait, p_now) d (answer)
$$;

comment on function flashsale.why_not(
  flashsale_data.items, integer, boolean, integer, integer, timestamptz) is
$$Why a customer without an open order gets no ticket; null: they get one
p_paid: how many units of the product they have paid.$$;

-- The look-ups are lateral with `offset 0`, which the planner does not take apart. So they stay
-- index probes, whatever it believes about a table that was empty a second ago: joined freely, they
-- became hash joins that made each call of a storm slower than the one before.
create or replace function flashsale.look_up_batch(
  p_item_ids integer[],
  p_customer_ids text[],
  p_idempotency_keys text[],
  p_waits boolean[],
  p_quantities integer[],
  p_min_quantities integer[],
  p_now timestamptz,
  p_cleared_ids bigint[],
  p_outcomes text[],
  p_order_ids bigint[])
returns table (
  ord bigint,
  item_id integer,
  customer_id text,
  line regclass,
  now_serving integer,
  ticket_limit integer,
  hold_seconds integer,
  product_id integer,
  outcome text,
  order_id bigint,
  in_the_way boolean)
language sql stable rows 100
as $$
  select
    r.ord, r.item_id, r.customer_id, l.line, l.now_serving, l.ticket_limit, l.hold_seconds,
    l.product_id,
    case
      when r.outcome is not null then r.outcome
      when l.is_special then (l.special).outcome
      when l.line is not null then l.outcome
      when r.item_id is not null and flashsale.is_request(r.customer_id, r.idempotency_key)
        then 'unknown_item'
      else 'invalid'
    end,
    case when r.outcome is not null then r.order_id when l.is_special then (l.special).order_id
      else l.order_id end,
    (l.special).in_the_way
  from rows from (
    unnest(p_item_ids), unnest(p_customer_ids), unnest(p_idempotency_keys), unnest(p_waits),
    unnest(p_quantities), unnest(p_min_quantities), unnest(p_outcomes), unnest(p_order_ids)
  ) with ordinality r (
    item_id, customer_id, idempotency_key, wait, quantity, min_quantity, outcome, order_id, ord)
  left join lateral (
    select f.order_id, f as found
    from flashsale.key_of(r.item_id, r.customer_id, r.idempotency_key) f offset 0
  ) k on true
  left join lateral (
    select
      f.*,
      case when f.is_special and r.outcome is null then flashsale.look_up_special(
        r.item_id, r.customer_id, r.idempotency_key, k.found, r.wait, coalesce(r.quantity, 1),
        coalesce(r.min_quantity, r.quantity, 1), p_now, p_cleared_ids) end as special
    from flashsale.look_up(
      r.item_id, r.customer_id, r.idempotency_key,
      r.quantity <> 1 or r.min_quantity <> 1 or k.order_id is not null, r.wait, p_now) f
    offset 0
  ) l on true
$$;

comment on function flashsale.look_up_batch(
  integer[], text[], text[], boolean[], integer[], integer[], timestamptz, bigint[], text[],
  bigint[]) is
$$What is known of the undecided requests of a batch; see look_up
p_cleared_ids, p_outcomes, p_order_ids: what earlier rounds have done and decided. in_the_way: the
order is to be dealt with first.$$;

-- This has no settings, so that it is inlined.
create or replace function flashsale.nth_ticket(p_ticket integer, p_more integer[], p_n integer)
returns integer
language sql immutable parallel safe
as $$ select case when p_more is null then p_ticket else (p_ticket || p_more)[p_n] end $$;

comment on function flashsale.nth_ticket(integer, integer[], integer) is
$$One of the tickets of a request; null: it has none$$;

-- Tickets are taken in the order of the requests. Therefore no request gets one in a round that
-- finds an order in the way: that customer's request may come before the others in the batch.
create or replace function flashsale.take_tickets(
  p_item_ids integer[], p_customer_ids text[], p_idempotency_keys text[], p_waits boolean[],
  p_quantities integer[], p_min_quantities integer[], p_now timestamptz, p_cleared_ids bigint[],
  inout outcomes text[],
  inout order_ids bigint[],
  out new_ids bigint[], out deadlines timestamptz[],
  out product_ids integer[],
  out groups flashsale_data.group_tickets[],
  out overdue_ids bigint[])
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
  with known as (
    select l.*
    from flashsale.look_up_batch(
      p_item_ids, p_customer_ids, p_idempotency_keys, p_waits, p_quantities, p_min_quantities,
      p_now, p_cleared_ids, outcomes, order_ids) l
  ), overdue as (
    select o.order_id
    from (select k.* from known k where k.outcome is null and k.order_id is not null offset 0) k
    join flashsale_data.orders o on o.order_id = k.order_id
    where o.status = 'reserved' and o.expires_at <= p_now or k.in_the_way
  ), newcomers as (
    select
      k.*,
      k.outcome is null and k.order_id is null and not exists (select from overdue)
        and 1 = row_number() over ( -- of each customer and item only the first request
          partition by coalesce(k.product_id, k.item_id), k.customer_id, k.outcome, k.order_id
          order by k.ord) as is_next
    from known k
    order by k.ord
  ), ticketed as (
    -- The transaction gets its id before it takes a ticket. fill relies on that.
    select
      n.*,
      case when n.is_next and pg_current_xact_id() is not null
        then nextval(n.line)::integer end as ticket,
      case when n.is_next and p_quantities[n.ord] > 1
        then flashsale.more_tickets(n.line, p_quantities[n.ord]) end as more -- after the first one
    from newcomers n
  ), counted as (
    select t.*, -- the tickets that bring the hold, and that have to be within the limit
      flashsale.nth_ticket(
        t.ticket, t.more, coalesce(p_min_quantities[t.ord], p_quantities[t.ord])) as granting,
      flashsale.nth_ticket(t.ticket, t.more, coalesce(
        case when p_waits[t.ord] is false then p_min_quantities[t.ord] end,
        p_quantities[t.ord])) as last_ticket
    from ticketed t
  )
  select -- a ticket after the limit came too late: it is not used, and fill finds the hole
    array_agg(
      case when t.last_ticket > t.ticket_limit then 'sold_out' else t.outcome end order by t.ord),
    array_agg(t.order_id order by t.ord),
    array_agg(
      case when t.last_ticket <= t.ticket_limit then flashsale.order_id_of(t.item_id, t.ticket) end
      order by t.ord),
    array_agg(
      case when t.granting <= t.now_serving then p_now + t.hold_seconds * interval '1 second' end
      order by t.ord),
    array_agg(t.product_id order by t.ord),
    array_agg(
      row(flashsale.order_id_of(t.item_id, t.ticket), t.ticket || t.more, p_quantities[t.ord],
        p_min_quantities[t.ord], t.now_serving)::flashsale_data.group_tickets)
      filter (where t.more is not null and t.last_ticket <= t.ticket_limit),
    (select array_agg(o.order_id) from overdue o)
  into outcomes, order_ids, new_ids, deadlines, product_ids, groups, overdue_ids
  from counted t;
end
$$;

comment on function flashsale.take_tickets(
  integer[], text[], text[], boolean[], integer[], integer[], timestamptz, bigint[], text[],
  bigint[]) is
$$Looks the undecided requests of a batch up and takes their tickets
outcomes, order_ids: as look_up tells them. new_ids: the orders that the tickets are to bring;
deadlines: until when their units are held, null for a place in the line; groups: all tickets of
those that ask for several units, or null. overdue_ids: orders that end_overdue has to deal with
before anybody of this batch takes a ticket.$$;

create or replace function flashsale.more_tickets(p_line regclass, p_quantity integer)
returns integer[]
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
  return array(select nextval(p_line)::integer from generate_series(2, p_quantity));
end
$$;

comment on function flashsale.more_tickets(regclass, integer) is
$$Takes the tickets of a request for several units, after its first one$$;

create or replace function flashsale.end_overdue(p_order_ids bigint[]) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
  perform from flashsale_data.orders o
  where o.order_id = any (p_order_ids)
  order by coalesce(o.product_id, o.item_id), o.customer_id, o.order_id
  for update;
  -- An order that is marked already is marked again: then a caller with an old snapshot fails who
  -- has counted without the orders that came after it.
  update flashsale_data.orders o
  set may_buy_again = true
  where o.order_id = any (p_order_ids) and o.status = 'paid';
  perform flashsale.expire_orders(p_order_ids, flashsale.clock());
end
$$;

comment on function flashsale.end_overdue(bigint[]) is
$$Deals with orders that are in the way of their customers' new requests
Ends holds that are over: an order that settles, or goes back to the line, is the answer to the
request. A paid order that leaves room for more leaves the index of open orders.$$;

-- Keys come before orders, so that duplicates of a request meet there. Both are inserted in one
-- fixed order, so that two batches never wait for each other.
create or replace function flashsale.place_orders(
  p_item_ids integer[], p_customer_ids text[], p_idempotency_keys text[], p_waits boolean[],
  p_quantities integer[], p_min_quantities integer[],
  p_product_ids integer[],
  p_new_ids bigint[],
  p_deadlines timestamptz[],
  p_now timestamptz,
  inout outcomes text[],
  inout order_ids bigint[])
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
  with ticketed as (
    select r.*, coalesce(r.new_id, r.known_id) as order_id
    from rows from (
      unnest(p_item_ids), unnest(p_customer_ids), unnest(p_idempotency_keys), unnest(p_new_ids),
      unnest(p_deadlines), unnest(outcomes), unnest(order_ids)
    ) with ordinality r (
      item_id, customer_id, idempotency_key, new_id, deadline, outcome, known_id, ord)
  ), claimed as (
    insert into flashsale_data.order_keys (
      customer_id, item_id, idempotency_key, order_id, quantity, min_quantity, wait)
    select
      t.customer_id, t.item_id, t.idempotency_key, t.order_id, p_quantities[t.ord],
      p_min_quantities[t.ord], p_waits[t.ord] is not false
    from ticketed t
    where t.outcome is null and t.idempotency_key is not null and t.order_id is not null
    order by t.item_id, t.customer_id, t.idempotency_key
    on conflict do nothing
    returning idempotency_key, order_id
  ), placed as (
    insert into flashsale_data.orders (
      order_id, item_id, ticket, customer_id, status, created_at, reserved_at, expires_at,
      product_id)
    select o.*, p_product_ids[t.ord]
    from ticketed t
    cross join lateral flashsale.new_order(
      t.item_id, flashsale.ticket_of(t.new_id), t.customer_id, p_now, t.deadline) o
    where t.new_id is not null
      and (t.idempotency_key is null or t.new_id in (select c.order_id from claimed c))
    order by coalesce(p_product_ids[t.ord], t.item_id), t.customer_id
    on conflict (coalesce(product_id, item_id), customer_id)
      where ended_at is null and may_buy_again is null do nothing
    returning order_id, status
  ), queued as (
    insert into pgmq.q_payments (vt, message) -- as enqueue_payment_jobs does
    select clock_timestamp(), jsonb_build_object('kind', 'open', 'payment_id', p.order_id)
    from placed p
    where p.status = 'reserved'
    order by p.order_id
  )
  select
    array_agg(
      case
        when t.outcome is not null then t.outcome
        when t.new_id in (select p.order_id from placed p) then
          case when t.deadline is null then 'waiting' else 'reserved' end
        when (t.known_id, t.idempotency_key) in (
          select c.order_id, c.idempotency_key from claimed c) then 'existing'
      end
      order by t.ord),
    array_agg(t.order_id order by t.ord)
  into outcomes, order_ids
  from ticketed t;
end
$$;

comment on function flashsale.place_orders(
  integer[], text[], text[], boolean[], integer[], integer[], integer[], bigint[], timestamptz[],
  timestamptz, text[], bigint[]) is
$$Inserts the keys, orders and payment jobs of a batch's tickets
outcomes: reserved, waiting or existing; null if a duplicate of the request came first, in this
batch or in another transaction.$$;

-- An order for several units was placed with its first ticket, as any order. Its other tickets get
-- their rows here: the parts. A part has no customer and no deadline of its own. Tickets of a
-- reserved order that the line has not reached are given up.
create or replace function flashsale.place_parts(
  p_groups flashsale_data.group_tickets[], p_now timestamptz)
returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
begin
  with placed as (
    select g.*, h.item_id, h.product_id, h.status, h.created_at, h.reserved_at
    from unnest(p_groups) g
    cross join lateral (
      select * from flashsale_data.orders o where o.order_id = g.head_id limit 1
    ) h
  ), parts as (
    insert into flashsale_data.orders (
      order_id, item_id, ticket, status, created_at, reserved_at, ended_at, head_id, product_id)
    select
      flashsale.order_id_of(p.item_id, t.ticket), p.item_id, t.ticket,
      case when p.status = 'waiting' or t.ticket <= p.now_serving then p.status
        else 'unserved' end,
      p.created_at, case when t.ticket <= p.now_serving then p.reserved_at end,
      case when p.status = 'reserved' and t.ticket > p.now_serving then p.created_at end,
      p.head_id, p.product_id
    from placed p
    cross join unnest(p.tickets[2:]) t (ticket)
    returning item_id, ended_at
  ), given_up as (
    insert into flashsale_data.tallies (item_id, paid, gaps_in_line)
    select p.item_id, 0, count(*) from parts p where p.ended_at is not null group by p.item_id
  )
  update flashsale_data.orders o
  set
    quantity = p.quantity, min_quantity = p.min_quantity,
    units = case when p.status = 'reserved' then (
      select count(*) from unnest(p.tickets) t (ticket) where t.ticket <= p.now_serving) end,
    part_served_at = case
      when p.status = 'waiting' and p.tickets[1] <= p.now_serving then p_now end
  from placed p
  where o.order_id = any (array(select a.head_id from placed a)) and o.order_id = p.head_id;
end
$$;

comment on function flashsale.place_parts(flashsale_data.group_tickets[], timestamptz) is
$$Inserts the parts of orders for several units that were just placed
p_groups: the tickets of all that were to be placed in this round.$$;

create or replace function flashsale.release_keys(
  p_item_ids integer[], p_customer_ids text[], p_idempotency_keys text[], p_outcomes text[])
returns void
language sql volatile set search_path = pg_catalog, pg_temp
as $$
  delete from flashsale_data.order_keys k
  using rows from (
    unnest(p_item_ids), unnest(p_customer_ids), unnest(p_idempotency_keys), unnest(p_outcomes)
  ) r (item_id, customer_id, idempotency_key, outcome)
  where r.outcome is null
    and k.customer_id = r.customer_id
    and k.item_id = r.item_id
    and k.idempotency_key = r.idempotency_key
    and not exists (
      select from flashsale_data.orders o
      where o.order_id = flashsale.current_id(k.order_id) and o.customer_id = k.customer_id)
$$;

comment on function flashsale.release_keys(integer[], text[], text[], text[]) is
$$Deletes keys that lead to an order which a duplicate prevented
Only those of requests that are still undecided. Nobody else can have seen such a key.$$;

-- The answers for orders that were just placed are made without reading them again.
create or replace function flashsale.answers(
  p_item_ids integer[],
  p_customer_ids text[],
  p_outcomes text[],
  p_order_ids bigint[],
  p_deadlines timestamptz[],
  p_placed_at timestamptz)
returns setof flashsale.order_row
language sql stable
as $$
  select
    r.outcome, coalesce(o.shown_id, r.order_id), r.item_id, r.customer_id, o.status, o.ticket,
    o.position, o.created_at, o.reserved_at, o.expires_at, o.paid_at, o.ended_at, o.payment_id,
    o.payment_status, o.amount, o.currency, o.checkout_url,
    case when r.outcome = 'not_open' then (
      select i.opens_at from flashsale_data.items i where i.item_id = r.item_id) end,
    o.late_order_id, o.reference, o.quantity, o.units, o.chance, o.forecast_as_of
  from rows from (
    unnest(p_item_ids), unnest(p_customer_ids), unnest(p_outcomes), unnest(p_order_ids),
    unnest(p_deadlines)
  ) with ordinality r (item_id, customer_id, outcome, order_id, deadline, ord)
  left join lateral (
    select
      r.outcome as status, flashsale.ticket_of(r.order_id) as ticket,
      case when r.outcome = 'waiting'
        then greatest(1, flashsale.ticket_of(r.order_id) - i.now_serving - i.gaps_in_line)
      end as position,
      p_placed_at as created_at,
      case when r.outcome = 'reserved' then p_placed_at end as reserved_at,
      r.deadline as expires_at, null::timestamptz as paid_at, null::timestamptz as ended_at,
      case when r.outcome = 'reserved' then r.order_id end as payment_id,
      case when r.outcome = 'reserved' then 'requested' end as payment_status,
      case when r.outcome = 'reserved' then i.price end as amount,
      case when r.outcome = 'reserved' then i.currency end as currency,
      null as checkout_url, null::bigint as late_order_id, null as reference,
      1 as quantity, case when r.outcome = 'reserved' then 1 end as units,
      null::double precision as chance, null::timestamptz as forecast_as_of,
      null::bigint as shown_id
    from flashsale_data.items i
    where r.outcome in ('reserved', 'waiting') and p_placed_at is not null
      and i.item_id = r.item_id
    union all
    (select
      s.status, s.ticket, s.position, s.created_at, s.reserved_at, s.expires_at, s.paid_at,
      s.ended_at, s.payment_id, s.payment_status, s.amount, s.currency, s.checkout_url,
      s.late_order_id, s.reference, s.quantity, s.units, s.chance, s.forecast_as_of,
      flashsale.shown_id(s.order_id)
    from flashsale.order_status s
    where (r.outcome in ('existing', 'entered')
        or p_placed_at is null and r.outcome <> 'has_other_order')
      and s.order_id = flashsale.current_id(r.order_id)
    limit 1)
  ) o on true
  order by r.ord
$$;

comment on function flashsale.answers(
  integer[], text[], text[], bigint[], timestamptz[], timestamptz) is
$$One row per request of a batch, in the order of the requests
p_placed_at: when its new orders were placed. Null: not all of them were placed in the first round
(a hold that was over had to be ended, or a duplicate came first), so they are read again.$$;
