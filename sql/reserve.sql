-- Joining an item's line: the hot path. The item row is read without a lock, the ticket comes from
-- the item's sequence, and one INSERT makes the order. Nothing that another customer needs is
-- locked. What is read of the item may be a moment old: now_serving only grows, so an old value
-- can make somebody wait a moment, never oversell.
-- enable_seqscan = off, here and in every function that callers call: a session keeps its plans,
-- and one made while a table was empty would read all of it for each customer of the storm.
create function flashsale.reserve_many(
  p_item_ids integer[],
  p_customer_ids text[],
  p_idempotency_keys text[] default null,
  p_waits boolean[] default null)
returns setof flashsale.order_row
language plpgsql security definer
set search_path = '' set enable_seqscan = off set plan_cache_mode = force_generic_plan
as $$
declare
  v_size constant integer := coalesce(cardinality(p_item_ids), 0);
  v_now timestamptz := flashsale.clock();
  v_order_ids bigint[];  -- of the answer, by request; null: a refusal
  v_outcomes text[];     -- of the answer, by request; null: look again
  v_overdue bigint[];
  v_settled boolean;
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

  -- A round settles everything, unless a twin came first, or a hold is to be ended before: a
  -- statement that waited for a twin does not see what it did, the next one does.
  -- The lookups are lateral, with a limit, so that they stay index probes whatever the planner
  -- believes about a table that was empty a second ago.
  for v_round in 1..10 loop
    with found as (
      select
        r.ord, r.item_id, r.customer_id, r.idempotency_key, i.line, i.now_serving,
        r.outcome is null and r.idempotency_key is not null and k.order_id is null as unkeyed,
        case
          when r.outcome is null then coalesce(k.order_id, o.order_id)
          else r.order_id
        end as order_id,
        case
          when not coalesce(r.wait, true) then i.now_serving
          when i.max_waiting is null then 2147483647
          else i.now_serving + i.gaps + i.max_waiting
        end as last_ticket, -- that may be given out
        case
          when r.outcome is not null then r.outcome
          when r.item_id is null
            or coalesce(length(r.customer_id) not between 1 and 128, true)
            or length(r.idempotency_key) not between 1 and 255 then 'invalid'
          when i.item_id is null then 'unknown_item'
          when k.order_id is not null then 'existing'
          when o.status = 'reserved' and o.expires_at <= v_now then 'overdue'
          when o.order_id is not null then 'existing'
          when i.closes_at <= v_now then 'closed'
          when i.paused then 'paused'
          when i.opens_at > v_now then 'not_open'
        end as verdict
      from rows from (
        unnest(p_item_ids), unnest(p_customer_ids), unnest(p_idempotency_keys), unnest(p_waits),
        unnest(v_outcomes), unnest(v_order_ids)
      ) with ordinality r (item_id, customer_id, idempotency_key, wait, outcome, order_id, ord)
      left join lateral (
        select *
        from flashsale_data.items j
        where j.item_id = r.item_id
        limit 1
      ) i on true
      left join lateral (
        select l.order_id, l.status, l.expires_at
        from flashsale_data.orders l
        where l.item_id = r.item_id and l.customer_id = r.customer_id
          and l.status in ('waiting', 'reserved', 'paid')
        limit 1
      ) o on true
      left join lateral (
        select a.order_id
        from flashsale_data.order_keys a
        where a.customer_id = r.customer_id
          and a.item_id = r.item_id
          and a.idempotency_key = r.idempotency_key
        limit 1
      ) k on true
    ), asked as materialized (
      select
        f.*,
        case
          when f.verdict is not null then f.verdict
          when coalesce(pg_sequence_last_value(f.line), 0) >= f.last_ticket then 'sold_out'
          when count(*) filter (where f.verdict is null)
            over (partition by f.item_id, f.customer_id order by f.ord) > 1 then 'repeat'
        end as decision
      from found f
    ), ticketed as materialized (
      -- In order of arrival. The transaction has its id before it has a ticket: fill relies on it.
      select
        t.*,
        case when t.decision is null and pg_current_xact_id() is not null
          then nextval(t.line)::integer end as ticket
      from (
        select
          a.ord, a.item_id, a.customer_id, a.idempotency_key, a.line, a.now_serving, a.order_id,
          a.last_ticket,
          a.unkeyed and a.decision = 'existing' as remember,
          case
            when a.decision is null or a.decision = 'existing' and a.unkeyed then
              case when (select bool_or(b.decision = 'overdue') from asked b) then 'later'
              else a.decision end
            else a.decision
          end as decision
        from asked a
        order by a.ord
      ) t
    ), claimed as (
      -- Keys before orders, so that duplicates of a request meet here.
      insert into flashsale_data.order_keys (customer_id, item_id, idempotency_key, order_id)
      select
        t.customer_id, t.item_id, t.idempotency_key,
        coalesce(flashsale.order_id_of(t.item_id, t.ticket), t.order_id)
      from ticketed t
      where t.idempotency_key is not null
        and (t.ticket <= t.last_ticket or t.remember and t.decision = 'existing')
      order by t.item_id, t.customer_id, t.idempotency_key
      on conflict do nothing
      returning item_id, customer_id, order_id
    ), entitled as (
      select t.item_id, t.customer_id, t.ticket
      from ticketed t
      where t.ticket <= t.last_ticket -- else somebody was faster: the ticket burns, fill finds it
        and t.idempotency_key is null
      union all
      select c.item_id, c.customer_id, (c.order_id - flashsale.order_id_of(c.item_id, 0))::integer
      from claimed c
    ), placed as (
      -- A claim for an order that exists already conflicts here, and that is all right.
      insert into flashsale_data.orders (
        item_id, ticket, customer_id, status, created_at, reserved_at, expires_at)
      select
        e.item_id, e.ticket, e.customer_id,
        case
          when e.ticket <= i.now_serving then 'reserved'::flashsale_data.order_status
          else 'waiting'
        end,
        v_now,
        case when e.ticket <= i.now_serving then v_now end,
        case when e.ticket <= i.now_serving then v_now + i.hold_seconds * interval '1 second' end
      from entitled e
      cross join lateral (
        select j.now_serving, j.hold_seconds
        from flashsale_data.items j
        where j.item_id = e.item_id
        limit 1
      ) i
      order by e.item_id, e.customer_id
      on conflict do nothing
      returning order_id, item_id, status
    ), charged as (
      insert into flashsale_data.payments (order_id, amount, currency, requested_at)
      select p.order_id, i.price, i.currency, v_now
      from placed p
      cross join lateral (
        select j.price, j.currency
        from flashsale_data.items j
        where j.item_id = p.item_id
        limit 1
      ) i
      where p.status = 'reserved'
      order by p.order_id
      returning payment_id
    ), queued as (
      select flashsale.send_jobs('open', array_agg(c.payment_id order by c.payment_id)) as jobs
      from charged c
      having count(*) > 0
    )
    select
      array_agg(coalesce(flashsale.order_id_of(t.item_id, t.ticket), t.order_id) order by t.ord),
      array_agg(
        case
          when t.ticket <= t.last_ticket then 'placed'
          when t.ticket > t.last_ticket then 'sold_out'
          when t.decision not in ('overdue', 'repeat', 'later') then t.decision
        end
        order by t.ord),
      array_agg(t.order_id order by t.order_id) filter (where t.decision = 'overdue'),
      count(*) filter (where t.decision in ('overdue', 'repeat', 'later')) = 0
        and count(t.ticket) filter (where t.ticket <= t.last_ticket)
          = (select count(*) from placed)
        and count(*) filter (
            where t.idempotency_key is not null and (t.ticket <= t.last_ticket or t.remember))
          = (select count(*) from claimed)
    into v_order_ids, v_outcomes, v_overdue, v_settled
    from ticketed t
    cross join (select count(*) from queued) q; -- or nobody would execute it

    exit when coalesce(v_settled, true);
    select u.order_ids, u.outcomes into v_order_ids, v_outcomes
    from flashsale.unsettle(
      p_item_ids, p_customer_ids, p_idempotency_keys, v_order_ids, v_outcomes) u;
    if v_overdue is not null then
      -- These customers' own holds are over: end them, and the next round gives new tickets.
      perform from flashsale_data.orders o
      where o.order_id = any (v_overdue)
      order by o.item_id, o.customer_id
      for update;
      v_now := flashsale.clock();
      perform flashsale.expire_orders(v_overdue, v_now);
    end if;
  end loop;

  if not coalesce(v_settled, true) then
    raise exception 'Too many requests of these customers met; nothing was done.' using
      errcode = '40001', hint = 'Call again.';
  end if;

  return query
  select
    case when r.outcome = 'placed' then o.status else r.outcome end,
    o.order_id, r.item_id, r.customer_id, o.status, o.ticket, o.position, o.created_at,
    o.reserved_at, o.expires_at, o.paid_at, o.ended_at, o.payment_id, o.payment_status, o.amount,
    o.currency, o.checkout_url,
    case when r.outcome = 'not_open' then (
      select i.opens_at from flashsale_data.items i where i.item_id = r.item_id) end
  from rows from (
    unnest(p_item_ids), unnest(p_customer_ids), unnest(v_outcomes), unnest(v_order_ids)
  ) with ordinality r (item_id, customer_id, outcome, order_id, ord)
  left join lateral (
    select *
    from flashsale.order_status s
    where s.order_id = r.order_id
    limit 1
  ) o on r.outcome in ('placed', 'existing')
  order by r.ord;
end
$$;

comment on function flashsale.reserve_many(integer[], text[], text[], boolean[]) is
$$Asks for a unit for each of up to 1,000 customers
One row a request, in the order of the requests. p_customer_ids: 1 to 128 characters.
p_idempotency_keys: 1 to 255 characters or null; the same item, customer and key always get the
same order. p_waits: false refuses rather than join the line.
Outcomes: reserved, waiting; existing (the order they already have); not_open (retry_at), closed,
paused, sold_out (also: the line is full); unknown_item, invalid: this request only.
Refusals take no ticket and write nothing. Errors: RV301 arrays that do not fit together.$$;

-- After a round in which something came in between: what was done stays, the rest is asked again.
create function flashsale.unsettle(
  p_item_ids integer[],
  p_customer_ids text[],
  p_idempotency_keys text[],
  p_order_ids bigint[],
  p_outcomes text[],
  out order_ids bigint[],
  out outcomes text[])
language plpgsql volatile set search_path = ''
as $$
begin
  -- Keys that we claimed for an order that a twin prevented; nobody else can see such a key.
  delete from flashsale_data.order_keys k
  using rows from (unnest(p_item_ids), unnest(p_customer_ids), unnest(p_idempotency_keys))
    r (item_id, customer_id, idempotency_key)
  where k.customer_id = r.customer_id
    and k.item_id = r.item_id
    and k.idempotency_key = r.idempotency_key
    and not exists (
      select from flashsale_data.orders o
      where o.order_id = k.order_id and o.customer_id = k.customer_id);
  select
    array_agg(r.order_id order by r.ord),
    array_agg(
      case
        when r.outcome not in ('placed', 'existing') then r.outcome
        when exists (
            select from flashsale_data.orders o
            where o.order_id = r.order_id and o.customer_id = r.customer_id)
          and (r.idempotency_key is null or exists (
            select from flashsale_data.order_keys k
            where k.customer_id = r.customer_id
              and k.item_id = r.item_id
              and k.idempotency_key = r.idempotency_key
              and k.order_id = r.order_id))
          then r.outcome
      end
      order by r.ord)
  into order_ids, outcomes
  from rows from (
    unnest(p_item_ids), unnest(p_customer_ids), unnest(p_idempotency_keys), unnest(p_order_ids),
    unnest(p_outcomes)
  ) with ordinality r (item_id, customer_id, idempotency_key, order_id, outcome, ord);
end
$$;

comment on function flashsale.unsettle(integer[], text[], text[], bigint[], text[]) is
$$Tells which requests of a batch got what they were promised
outcome null: ask again. For reserve_many only.$$;

-- One request. What nearly all of them are, a new customer of an open sale, takes a few plain
-- statements; whatever else it may be is a batch of one, so that the rules stand in one place.
-- (A batch of one takes several times as long: its plan has many nodes to start and to end.)
create function flashsale.reserve(
  p_item_id integer,
  p_customer_id text,
  p_idempotency_key text default null,
  p_wait boolean default true)
returns flashsale.order_row
language plpgsql security definer
set search_path = '' set enable_seqscan = off set plan_cache_mode = force_generic_plan
as $$
declare
  v_item flashsale_data.items;
  v_now timestamptz := flashsale.clock();
  v_last_ticket integer; -- that may be given out
  v_claimed boolean := true;
  v_row flashsale.order_row;
begin
  select * into v_item from flashsale_data.items i where i.item_id = p_item_id;
  v_last_ticket := case
    when not coalesce(p_wait, true) then v_item.now_serving
    when v_item.max_waiting is null then 2147483647
    else v_item.now_serving + v_item.gaps + v_item.max_waiting
  end;
  if not v_item.paused
    and coalesce(v_item.opens_at <= v_now, true)
    and coalesce(v_item.closes_at > v_now, true)
    and length(p_customer_id) between 1 and 128
    and coalesce(length(p_idempotency_key) between 1 and 255, true)
    and coalesce(pg_sequence_last_value(v_item.line), 0) < v_last_ticket
    and not exists (
      select from flashsale_data.orders o
      where o.item_id = p_item_id and o.customer_id = p_customer_id
        and o.status in ('waiting', 'reserved', 'paid'))
    and (p_idempotency_key is null or not exists (
      select from flashsale_data.order_keys k
      where k.customer_id = p_customer_id
        and k.item_id = p_item_id
        and k.idempotency_key = p_idempotency_key))
    and pg_current_xact_id() is not null -- before the ticket: fill relies on it
  then
    v_row.ticket := nextval(v_item.line);
    if v_row.ticket <= v_last_ticket then
      v_row.order_id := flashsale.order_id_of(p_item_id, v_row.ticket);
      v_row.status :=
        case when v_row.ticket <= v_item.now_serving then 'reserved' else 'waiting' end;
      v_row.created_at := v_now;
      if v_row.status = 'reserved' then
        v_row.reserved_at := v_now;
        v_row.expires_at := v_now + v_item.hold_seconds * interval '1 second';
      else
        v_row.position := v_row.ticket - v_item.now_serving;
      end if;
      if p_idempotency_key is not null then
        insert into flashsale_data.order_keys (customer_id, item_id, idempotency_key, order_id)
        values (p_customer_id, p_item_id, p_idempotency_key, v_row.order_id)
        on conflict do nothing;
        v_claimed := found;
      end if;
      if v_claimed then
        insert into flashsale_data.orders (
          item_id, ticket, customer_id, status, created_at, reserved_at, expires_at)
        values (
          p_item_id, v_row.ticket, p_customer_id,
          v_row.status::flashsale_data.order_status, v_now, v_row.reserved_at, v_row.expires_at)
        on conflict do nothing;
        if found then
          if v_row.status = 'reserved' then
            insert into flashsale_data.payments (order_id, amount, currency, requested_at)
            values (v_row.order_id, v_item.price, v_item.currency, v_now)
            returning payment_id, status, amount, currency
            into v_row.payment_id, v_row.payment_status, v_row.amount, v_row.currency;
            perform flashsale.send_jobs('open', array[v_row.payment_id]);
          end if;
          v_row.outcome := v_row.status;
          v_row.item_id := p_item_id;
          v_row.customer_id := p_customer_id;
          return v_row;
        elsif p_idempotency_key is not null then -- a twin was faster
          delete from flashsale_data.order_keys k
          where k.customer_id = p_customer_id
            and k.item_id = p_item_id
            and k.idempotency_key = p_idempotency_key;
        end if;
      end if;
    end if;
  end if;

  select * into v_row from flashsale.reserve_many(
    array[p_item_id], array[p_customer_id], array[p_idempotency_key], array[p_wait]);
  if v_row.outcome = 'unknown_item' then
    raise exception 'There is no such item.' using
      errcode = 'RV101', constraint = 'unknown_item', detail = format('item_id %s', p_item_id),
      hint = 'flashsale.items() lists the items.';
  elsif v_row.outcome = 'invalid' then
    raise exception 'This is not a request for a unit.' using
      errcode = 'RV301', constraint = 'bad_value',
      detail = format('item_id %s, a customer of %s characters, a key of %s characters', p_item_id,
        coalesce(length(p_customer_id), 0), coalesce(length(p_idempotency_key), 0)),
      hint = 'Customers have 1 to 128 characters, idempotency keys 1 to 255.';
  end if;
  return v_row;
end
$$;

comment on function flashsale.reserve(integer, text, text, boolean) is
$$Asks for a unit of an item: a reservation, or a place in the line
See reserve_many. Errors: RV101 unknown item, RV301 customer or key too short or too long.$$;
