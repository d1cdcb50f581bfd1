-- Joining an item's line: the hot path. The item row is read without a lock, the ticket comes from
-- the item's sequence, and one INSERT makes the order. Nothing that another customer needs is
-- locked. What is read of the item may be a moment old: now_serving only grows, so an old value
-- can make somebody wait a moment, never oversell.
create or replace function flashsale.last_ticket_for(
  p_wait boolean, p_now_serving integer, p_gaps integer, p_max_waiting integer)
returns integer
language sql immutable parallel safe
as $$
  select case
    when p_wait is false then p_now_serving
    when p_max_waiting is null then 2147483647
    else p_now_serving + p_gaps + p_max_waiting
  end
$$;

comment on function flashsale.last_ticket_for(boolean, integer, integer, integer) is
$$The last ticket of an item that may be given out
To who would rather not wait (p_wait false) none beyond now_serving.$$;

create or replace function flashsale.shut_by(
  p_opens_at timestamptz, p_closes_at timestamptz, p_paused boolean, p_now timestamptz)
returns text
language sql immutable parallel safe
as $$
  select case
    when p_closes_at <= p_now then 'closed'
    when p_paused then 'paused'
    when p_opens_at > p_now then 'not_open'
  end
$$;

comment on function flashsale.shut_by(timestamptz, timestamptz, boolean, timestamptz) is
$$Why an item takes no orders at p_now; null: it does
closed, paused or not_open.$$;

-- enable_seqscan = off, here and in every function that callers call: a session keeps its plans,
-- and one made while a table was empty would read all of it for each customer of the storm.
create or replace function flashsale.reserve_many(
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
  v_outcomes text[];     -- of the answer, by request; null: look again; placed: a round ago
  v_deadlines timestamptz[]; -- of the holds that the last round placed
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
        r.ord, r.item_id, r.customer_id, r.idempotency_key, i.line, i.now_serving, i.hold_seconds,
        r.outcome is null and r.idempotency_key is not null and k.order_id is null as unkeyed,
        case
          when r.outcome is null then coalesce(k.order_id, o.order_id)
          else r.order_id
        end as order_id,
        flashsale.last_ticket_for(r.wait, i.now_serving, i.gaps_in_line, i.max_waiting)
          as last_ticket,
        case
          when r.outcome is not null then r.outcome
          when r.item_id is null
            or coalesce(length(r.customer_id) not between 1 and 128, true)
            or length(r.idempotency_key) not between 1 and 255 then 'invalid'
          when i.item_id is null then 'unknown_item'
          when k.order_id is not null then 'existing'
          when o.status = 'reserved' and o.expires_at <= v_now then 'overdue'
          when o.order_id is not null then 'existing'
          else flashsale.shut_by(i.opens_at, i.closes_at, i.paused, v_now)
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
          and l.ended_at is null
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
          when f.last_ticket < 2147483647
            and coalesce(pg_sequence_last_value(f.line), 0) >= f.last_ticket then 'sold_out'
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
          a.ord, a.item_id, a.customer_id, a.idempotency_key, a.line, a.now_serving, a.hold_seconds,
          a.order_id, a.last_ticket,
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
      returning order_id
    ), placed as (
      -- Who comes after the last ticket was too slow: the ticket burns, fill finds it.
      insert into flashsale_data.orders (
        order_id, item_id, ticket, customer_id, status, created_at, reserved_at, expires_at)
      select
        flashsale.order_id_of(t.item_id, t.ticket), t.item_id, t.ticket, t.customer_id,
        case
          when t.ticket <= t.now_serving then 'reserved'::flashsale_data.order_status
          else 'waiting'
        end,
        v_now,
        case when t.ticket <= t.now_serving then v_now end,
        case when t.ticket <= t.now_serving then v_now + t.hold_seconds * interval '1 second' end
      from ticketed t
      where t.ticket <= t.last_ticket
        and (t.idempotency_key is null
          or flashsale.order_id_of(t.item_id, t.ticket) in (select c.order_id from claimed c))
      order by t.item_id, t.customer_id
      on conflict (item_id, customer_id) where ended_at is null do nothing
      returning order_id, status
    ), queued as (
      insert into pgmq.q_payments (vt, message) -- as send_jobs does
      select clock_timestamp(), jsonb_build_object('kind', 'open', 'payment_id', p.order_id)
      from placed p
      where p.status = 'reserved'
      order by p.order_id
    )
    select
      array_agg(coalesce(flashsale.order_id_of(t.item_id, t.ticket), t.order_id) order by t.ord),
      array_agg(
        case
          when t.ticket > t.last_ticket then 'sold_out'
          when t.ticket <= t.now_serving then 'reserved'
          when t.ticket is not null then 'waiting'
          when t.decision not in ('overdue', 'repeat', 'later') then t.decision
        end
        order by t.ord),
      array_agg(
        case when t.ticket <= t.now_serving then v_now + t.hold_seconds * interval '1 second' end
        order by t.ord),
      array_agg(t.order_id order by t.order_id) filter (where t.decision = 'overdue'),
      count(*) filter (where t.decision in ('overdue', 'repeat', 'later')) = 0
        and count(t.ticket) filter (where t.ticket <= t.last_ticket)
          = (select count(*) from placed)
        and count(*) filter (
            where t.idempotency_key is not null and (t.ticket <= t.last_ticket or t.remember))
          = (select count(*) from claimed)
    into v_order_ids, v_outcomes, v_deadlines, v_overdue, v_settled
    from ticketed t;

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

  -- What was just placed is known without reading it again.
  return query
  select
    case when r.outcome = 'placed' then o.status else r.outcome end,
    o.order_id, r.item_id, r.customer_id, o.status, o.ticket, o.position, o.created_at,
    o.reserved_at, o.expires_at, o.paid_at, o.ended_at, o.payment_id, o.payment_status, o.amount,
    o.currency, o.checkout_url,
    case when r.outcome = 'not_open' then (
      select i.opens_at from flashsale_data.items i where i.item_id = r.item_id) end
  from rows from (
    unnest(p_item_ids), unnest(p_customer_ids), unnest(v_outcomes), unnest(v_order_ids),
    unnest(v_deadlines)
  ) with ordinality r (item_id, customer_id, outcome, order_id, deadline, ord)
  left join lateral (
    select
      r.order_id, r.outcome as status, t.ticket,
      case when r.deadline is null then greatest(1, t.ticket - i.now_serving) end as position,
      v_now as created_at,
      case when r.deadline is not null then v_now end as reserved_at,
      r.deadline as expires_at, null::timestamptz as paid_at, null::timestamptz as ended_at,
      case when r.deadline is not null then r.order_id end as payment_id,
      case when r.deadline is not null then 'requested' end as payment_status,
      case when r.deadline is not null then i.price end as amount,
      case when r.deadline is not null then i.currency end as currency,
      null as checkout_url
    from flashsale_data.items i
    cross join lateral (select flashsale.ticket_of(r.order_id) as ticket) t
    where r.outcome in ('reserved', 'waiting') and i.item_id = r.item_id
    union all
    (select
      s.order_id, s.status, s.ticket, s.position, s.created_at, s.reserved_at, s.expires_at,
      s.paid_at, s.ended_at, s.payment_id, s.payment_status, s.amount, s.currency, s.checkout_url
    from flashsale.order_status s
    where r.outcome in ('placed', 'existing') and s.order_id = r.order_id
    limit 1)
  ) o on true
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
create or replace function flashsale.unsettle(
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
        when r.outcome not in ('reserved', 'waiting', 'placed', 'existing') then r.outcome
        when exists (
            select from flashsale_data.orders o
            where o.order_id = r.order_id and o.customer_id = r.customer_id)
          and (r.idempotency_key is null or exists (
            select from flashsale_data.order_keys k
            where k.customer_id = r.customer_id
              and k.item_id = r.item_id
              and k.idempotency_key = r.idempotency_key
              and k.order_id = r.order_id))
          then case when r.outcome in ('reserved', 'waiting') then 'placed' else r.outcome end
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

-- One request. What nearly all of them are takes a few plain statements: a new customer of an open
-- sale, one who asks again, one who is refused. Whatever else it may be is a batch of one, which
-- takes several times as long: its plan has many nodes to start and to end. (For the same reason
-- there are few expressions here: each costs a transaction as much as an index probe.)
create or replace function flashsale.reserve(
  p_item_id integer,
  p_customer_id text,
  p_idempotency_key text default null,
  p_wait boolean default true)
returns flashsale.order_row
language plpgsql security definer set search_path = '' set enable_seqscan = off
as $$
declare
  v_now timestamptz := flashsale.clock();
  v_verdict text; -- as in reserve_many, and unkeyed: a new key; null: a ticket, or no such item
  v_taken boolean; -- whether a duplicate of this request has claimed the key
  v_line regclass;
  v_ticket integer;
  v_last_ticket integer;
  v_now_serving integer;
  v_hold_seconds integer;
  v_price bigint;
  v_currency text;
  v_opens_at timestamptz;
  v_order_id bigint;
  v_expires_at timestamptz;
  v_row flashsale.order_row;
begin
  if p_idempotency_key is not null then
    select k.order_id into v_order_id
    from flashsale_data.order_keys k
    where k.customer_id = p_customer_id
      and k.item_id = p_item_id
      and k.idempotency_key = p_idempotency_key;
  end if;

  select
    i.line, i.now_serving, i.hold_seconds, i.price, i.currency, i.opens_at, l.last_ticket,
    coalesce(v_order_id, o.order_id),
    case
      when coalesce(length(p_customer_id) not between 1 and 128, true)
        or length(p_idempotency_key) not between 1 and 255 then 'invalid'
      when v_order_id is not null then 'existing'
      when o.status = 'reserved' and o.expires_at <= v_now then 'overdue'
      when o.order_id is not null and p_idempotency_key is not null then 'unkeyed'
      when o.order_id is not null then 'existing'
      else coalesce(
        flashsale.shut_by(i.opens_at, i.closes_at, i.paused, v_now),
        case
          when coalesce(pg_sequence_last_value(i.line), 0) >= l.last_ticket then 'sold_out'
        end)
    end
  into
    v_line, v_now_serving, v_hold_seconds, v_price, v_currency, v_opens_at, v_last_ticket,
    v_order_id, v_verdict
  from flashsale_data.items i
  cross join lateral (
    select flashsale.last_ticket_for(p_wait, i.now_serving, i.gaps_in_line, i.max_waiting)
      as last_ticket
  ) l
  left join flashsale_data.orders o
    on o.item_id = i.item_id and o.customer_id = p_customer_id and o.ended_at is null
  where i.item_id = p_item_id;

  if v_verdict is null then
    -- The transaction has its id before it has a ticket: fill relies on it.
    v_ticket := case when pg_current_xact_id() is not null then nextval(v_line) end;
  elsif v_verdict = 'existing' then
    select 'existing', o.*, null::timestamptz into v_row
    from flashsale.order_status o
    where o.order_id = v_order_id;
    return v_row;
  elsif v_verdict in ('closed', 'paused', 'not_open', 'sold_out') then
    return row(
      v_verdict, null, p_item_id, p_customer_id, null, null, null, null, null, null, null, null,
      null, null, null, null, null,
      case when v_verdict = 'not_open' then v_opens_at end)::flashsale.order_row;
  end if;

  if v_ticket <= v_last_ticket then
    if p_idempotency_key is not null then
      insert into flashsale_data.order_keys (customer_id, item_id, idempotency_key, order_id)
      values (
        p_customer_id, p_item_id, p_idempotency_key,
        flashsale.order_id_of(p_item_id, v_ticket))
      on conflict do nothing;
      v_taken := not found; -- by a duplicate of this request
    end if;
    insert into flashsale_data.orders as o (
      order_id, item_id, ticket, customer_id, status, created_at, reserved_at, expires_at)
    select
      flashsale.order_id_of(p_item_id, v_ticket), p_item_id, v_ticket, p_customer_id,
      case
        when v_ticket <= v_now_serving then 'reserved'::flashsale_data.order_status
        else 'waiting'
      end,
      v_now,
      case when v_ticket <= v_now_serving then v_now end,
      case when v_ticket <= v_now_serving then v_now + v_hold_seconds * interval '1 second' end
    where v_taken is not true
    on conflict (item_id, customer_id) where ended_at is null do nothing
    returning o.order_id, o.expires_at into v_order_id, v_expires_at;
    if v_expires_at is not null then
      insert into pgmq.q_payments (vt, message) -- as send_jobs does
      values (
        clock_timestamp(), jsonb_build_object('kind', 'open', 'payment_id', v_order_id));
      return row(
        'reserved', v_order_id, p_item_id, p_customer_id, 'reserved', v_ticket, null, v_now, v_now,
        v_expires_at, null, null, v_order_id, 'requested', v_price, v_currency, null,
        null)::flashsale.order_row;
    elsif v_order_id is not null then
      return row(
        'waiting', v_order_id, p_item_id, p_customer_id, 'waiting', v_ticket,
        v_ticket - v_now_serving, v_now, null, null, null, null, null, null, null, null, null,
        null)::flashsale.order_row;
    elsif v_taken is false then -- another request of this customer was faster
      delete from flashsale_data.order_keys k
      where k.customer_id = p_customer_id
        and k.item_id = p_item_id
        and k.idempotency_key = p_idempotency_key;
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
