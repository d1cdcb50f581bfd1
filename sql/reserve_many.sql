-- reserve_many handles up to 1,000 requests for units at once, with the same results as reserve. In
-- a storm the service gathers the requests that arrive while a call is under way, and sends them
-- here in one call.
--
-- A call works in rounds of two statements over the requests that are not decided yet:
--   take_tickets   looks up what is known of each, and takes tickets in the order of the requests;
--   place_orders   inserts the keys, the orders and the payment jobs.
-- The first round decides everything, with three exceptions: a customer has two requests in the
-- batch, a customer's own hold is over and has to be ended first, or a duplicate of a request came
-- first in another transaction. A statement that has waited for a duplicate does not see what the
-- duplicate did, but the next statement does. So the next round decides these requests.
--
-- The state is a few arrays with one element per request. A null outcome means: not decided yet.
create or replace function flashsale.reserve_many(
  p_item_ids integer[],
  p_customer_ids text[],
  p_idempotency_keys text[] default null,
  p_waits boolean[] default null)
returns setof flashsale.order_row
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set plan_cache_mode = force_generic_plan
as $$
declare
  v_began_at constant timestamptz := flashsale.clock();
  v_now timestamptz := v_began_at;
  v_outcomes text[];
  v_order_ids bigint[];         -- the orders that the customers have
  v_new_ids bigint[];           -- the orders that the tickets of this round bring
  v_deadlines timestamptz[];    -- ... and until when their units are held; null: in the line
  v_overdue_ids bigint[];       -- holds that have to be ended first
  v_placed_at timestamptz;      -- when the new orders were placed; null: not all in the first round
  -- One round is the rule, and two or three the exception. More are needed only if duplicates of
  -- these requests come and go in other transactions all the time: then the caller is to try again.
  v_rounds constant integer := 10;
begin
  perform flashsale.check_batch(p_item_ids, p_customer_ids, p_idempotency_keys, p_waits);
  for v_round in 1..v_rounds loop
    select t.* into v_outcomes, v_order_ids, v_new_ids, v_deadlines, v_overdue_ids
    from flashsale.take_tickets(
      p_item_ids, p_customer_ids, p_idempotency_keys, p_waits, v_now, v_outcomes, v_order_ids) t;
    if v_overdue_ids is not null then
      perform flashsale.end_overdue(v_overdue_ids);
      v_now := flashsale.clock(); -- end_overdue may have waited for a lock
      continue;
    end if;
    v_placed_at := case when v_round = 1 then v_now end;
    select p.* into v_outcomes, v_order_ids
    from flashsale.place_orders(
      p_item_ids, p_customer_ids, p_idempotency_keys, v_new_ids, v_deadlines, v_now, v_outcomes,
      v_order_ids) p;
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
  return query
  select a.*
  from flashsale.answers(
    p_item_ids, p_customer_ids, v_outcomes, v_order_ids, v_deadlines, v_placed_at) a;
end
$$;

comment on function flashsale.reserve_many(integer[], text[], text[], boolean[]) is
$$Requests a unit for each of up to 1,000 customers
One row per request, in the order of the requests. p_customer_ids: 1 to 128 characters of printable
ASCII, without spaces at the ends. p_idempotency_keys: 1 to 255 such characters or null; the same
item, customer and key always get the same order. p_waits: false refuses rather than join the line.
Outcomes: reserved, waiting; existing (the order that the customer already has); not_open
(retry_at), closed, paused, sold_out (also: the line is full); unknown_item, invalid (such a
request fails alone). Refusals take no ticket and write nothing.
Errors: RV301 arrays that do not fit together; 40001 too many requests of these customers met, and
nothing was done: call again.$$;

create or replace function flashsale.check_batch(
  p_item_ids integer[], p_customer_ids text[], p_idempotency_keys text[], p_waits boolean[])
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
  then
    raise exception 'A batch needs arrays of one length, at most 1000.' using
      errcode = 'RV301', constraint = 'bad_batch',
      detail = format('%s items, %s customers, %s keys, %s waits', cardinality(p_item_ids),
        cardinality(p_customer_ids), cardinality(p_idempotency_keys), cardinality(p_waits)),
      hint = 'Split the batch, or leave out the arrays that you do not need.';
  end if;
end
$$;

comment on function flashsale.check_batch(integer[], text[], text[], boolean[]) is
$$Raises RV301 if the arrays of a batch do not fit together$$;

-- The look-ups are lateral with `offset 0`, which the planner does not take apart. So they stay
-- index probes, whatever it believes about a table that was empty a second ago: joined freely, they
-- became hash joins that made each call of a storm slower than the one before.
create or replace function flashsale.look_up_batch(
  p_item_ids integer[],
  p_customer_ids text[],
  p_idempotency_keys text[],
  p_waits boolean[],
  p_now timestamptz,
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
  outcome text,
  order_id bigint)
language sql stable rows 100
as $$
  select
    r.ord, r.item_id, r.customer_id, l.line, l.now_serving, l.ticket_limit, l.hold_seconds,
    case
      when r.outcome is not null then r.outcome
      when l.line is not null then l.outcome
      when r.item_id is not null and flashsale.is_request(r.customer_id, r.idempotency_key)
        then 'unknown_item'
      else 'invalid'
    end,
    case when r.outcome is null then l.order_id else r.order_id end
  from rows from (
    unnest(p_item_ids), unnest(p_customer_ids), unnest(p_idempotency_keys), unnest(p_waits),
    unnest(p_outcomes), unnest(p_order_ids)
  ) with ordinality r (item_id, customer_id, idempotency_key, wait, outcome, order_id, ord)
  left join lateral (
    select * from flashsale.order_of_key(r.item_id, r.customer_id, r.idempotency_key) offset 0
  ) k on true
  left join lateral (
    select f.*
    from flashsale.look_up(
      r.item_id, r.customer_id, r.idempotency_key, k.order_id, r.wait, p_now) f
    offset 0
  ) l on true
$$;

comment on function flashsale.look_up_batch(
  integer[], text[], text[], boolean[], timestamptz, text[], bigint[]) is
$$What is known of the undecided requests of a batch; see look_up
p_outcomes, p_order_ids: what earlier rounds have decided.$$;

-- Tickets are taken in the order of the requests. Therefore no request gets one in a round that
-- finds a hold to be ended first: that customer's request may come before the others in the batch.
create or replace function flashsale.take_tickets(
  p_item_ids integer[],
  p_customer_ids text[],
  p_idempotency_keys text[],
  p_waits boolean[],
  p_now timestamptz,
  inout outcomes text[],
  inout order_ids bigint[],
  out new_ids bigint[],
  out deadlines timestamptz[],
  out overdue_ids bigint[])
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
  with known as (
    select l.*
    from flashsale.look_up_batch(
      p_item_ids, p_customer_ids, p_idempotency_keys, p_waits, p_now, outcomes, order_ids) l
  ), overdue as (
    select o.order_id
    from (select k.* from known k where k.outcome is null and k.order_id is not null offset 0) k
    join flashsale_data.orders o on o.order_id = k.order_id
    where o.status = 'reserved' and o.expires_at <= p_now
  ), newcomers as (
    select
      k.*,
      k.outcome is null and k.order_id is null and not exists (select from overdue)
        and 1 = row_number() over ( -- of each customer and item only the first request
          partition by k.item_id, k.customer_id, k.outcome, k.order_id order by k.ord) as is_next
    from known k
    order by k.ord
  ), ticketed as (
    -- The transaction gets its id before it takes a ticket. fill relies on that.
    select
      n.*,
      case when n.is_next and pg_current_xact_id() is not null
        then nextval(n.line)::integer end as ticket
    from newcomers n
  )
  select -- a ticket after the limit came too late: it is not used, and fill finds the hole
    array_agg(
      case when t.ticket > t.ticket_limit then 'sold_out' else t.outcome end order by t.ord),
    array_agg(t.order_id order by t.ord),
    array_agg(
      case when t.ticket <= t.ticket_limit then flashsale.order_id_of(t.item_id, t.ticket) end
      order by t.ord),
    array_agg(
      case when t.ticket <= t.now_serving then p_now + t.hold_seconds * interval '1 second' end
      order by t.ord),
    (select array_agg(o.order_id) from overdue o)
  into outcomes, order_ids, new_ids, deadlines, overdue_ids
  from ticketed t;
end
$$;

comment on function flashsale.take_tickets(
  integer[], text[], text[], boolean[], timestamptz, text[], bigint[]) is
$$Looks the undecided requests of a batch up and takes their tickets
outcomes, order_ids: as look_up tells them. new_ids: the orders that the tickets are to bring;
deadlines: until when their units are held, null for a place in the line. overdue_ids: holds that
have to be ended before anybody of this batch takes a ticket.$$;

create or replace function flashsale.end_overdue(p_order_ids bigint[]) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
  perform from flashsale_data.orders o
  where o.order_id = any (p_order_ids)
  order by o.item_id, o.customer_id
  for update;
  perform flashsale.expire_orders(p_order_ids, flashsale.clock());
end
$$;

comment on function flashsale.end_overdue(bigint[]) is
$$Ends the customers' own overdue holds, so that they can reserve anew
An order that settles, or goes back to the line, is the answer to their request.$$;

-- Keys come before orders, so that duplicates of a request meet there. Both are inserted in one
-- fixed order, so that two batches never wait for each other.
create or replace function flashsale.place_orders(
  p_item_ids integer[],
  p_customer_ids text[],
  p_idempotency_keys text[],
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
    insert into flashsale_data.order_keys (customer_id, item_id, idempotency_key, order_id)
    select t.customer_id, t.item_id, t.idempotency_key, t.order_id
    from ticketed t
    where t.outcome is null and t.idempotency_key is not null and t.order_id is not null
    order by t.item_id, t.customer_id, t.idempotency_key
    on conflict do nothing
    returning idempotency_key, order_id
  ), placed as (
    insert into flashsale_data.orders (
      order_id, item_id, ticket, customer_id, status, created_at, reserved_at, expires_at)
    select o.*
    from ticketed t
    cross join lateral flashsale.new_order(
      t.item_id, flashsale.ticket_of(t.new_id), t.customer_id, p_now, t.deadline) o
    where t.new_id is not null
      and (t.idempotency_key is null or t.new_id in (select c.order_id from claimed c))
    order by t.item_id, t.customer_id
    on conflict (item_id, customer_id) where ended_at is null do nothing
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
  integer[], text[], text[], bigint[], timestamptz[], timestamptz, text[], bigint[]) is
$$Inserts the keys, orders and payment jobs of a batch's tickets
outcomes: reserved, waiting or existing; null if a duplicate of the request came first, in this
batch or in another transaction.$$;

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
      where o.order_id = k.order_id and o.customer_id = k.customer_id)
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
    r.outcome, r.order_id, r.item_id, r.customer_id, o.status, o.ticket, o.position, o.created_at,
    o.reserved_at, o.expires_at, o.paid_at, o.ended_at, o.payment_id, o.payment_status, o.amount,
    o.currency, o.checkout_url,
    case when r.outcome = 'not_open' then (
      select i.opens_at from flashsale_data.items i where i.item_id = r.item_id) end,
    o.late_order_id, o.reference
  from rows from (
    unnest(p_item_ids), unnest(p_customer_ids), unnest(p_outcomes), unnest(p_order_ids),
    unnest(p_deadlines)
  ) with ordinality r (item_id, customer_id, outcome, order_id, deadline, ord)
  left join lateral (
    select
      r.outcome as status, flashsale.ticket_of(r.order_id) as ticket,
      case when r.outcome = 'waiting'
        then greatest(1, flashsale.ticket_of(r.order_id) - i.now_serving) end as position,
      p_placed_at as created_at,
      case when r.outcome = 'reserved' then p_placed_at end as reserved_at,
      r.deadline as expires_at, null::timestamptz as paid_at, null::timestamptz as ended_at,
      case when r.outcome = 'reserved' then r.order_id end as payment_id,
      case when r.outcome = 'reserved' then 'requested' end as payment_status,
      case when r.outcome = 'reserved' then i.price end as amount,
      case when r.outcome = 'reserved' then i.currency end as currency,
      null as checkout_url, null::bigint as late_order_id, null as reference
    from flashsale_data.items i
    where r.outcome in ('reserved', 'waiting') and p_placed_at is not null
      and i.item_id = r.item_id
    union all
    (select
      s.status, s.ticket, s.position, s.created_at, s.reserved_at, s.expires_at, s.paid_at,
      s.ended_at, s.payment_id, s.payment_status, s.amount, s.currency, s.checkout_url,
      s.late_order_id, s.reference
    from flashsale.order_status s
    where (r.outcome = 'existing' or p_placed_at is null) and s.order_id = r.order_id
    limit 1)
  ) o on true
  order by r.ord
$$;

comment on function flashsale.answers(
  integer[], text[], text[], bigint[], timestamptz[], timestamptz) is
$$One row per request of a batch, in the order of the requests
p_placed_at: when its new orders were placed. Null: not all of them were placed in the first round
(a hold that was over had to be ended, or a duplicate came first), so they are read again.$$;
