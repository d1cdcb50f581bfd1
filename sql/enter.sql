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
    when p_draw not in ('entering', 'listing') then null
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
$$Whether this is the id of an entry of a draw, and not of a ticket$$;

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
$$The id that the customer of an order knows: of its entry, if it was drawn$$;

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
  p_item_ids integer[],
  p_customer_ids text[],
  p_idempotency_keys text[],
  inout outcomes text[],
  inout order_ids bigint[])
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz;
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
    select
      r.*,
      case
        when flashsale.answer_of_draw(i.draw, i.opens_at, i.closes_at, i.paused, true, v_now)
          = 'entered' and 1 = row_number() over (
            partition by r.item_id, r.customer_id, r.outcome, r.order_id order by r.ord)
        then flashsale.order_id_of(
          r.item_id, nextval('flashsale_data.entry_numbers'::regclass)::integer)
      end as new_id
    from rows from (
      unnest(p_item_ids), unnest(p_customer_ids), unnest(p_idempotency_keys), unnest(outcomes),
      unnest(order_ids)
    ) with ordinality r (item_id, customer_id, idempotency_key, outcome, order_id, ord)
    left join flashsale_data.items i
      on i.item_id = r.item_id and r.outcome = 'entered' and r.order_id is null
  ), claimed as (
    insert into flashsale_data.order_keys (customer_id, item_id, idempotency_key, order_id)
    select a.customer_id, a.item_id, a.idempotency_key, a.new_id
    from asked a
    where a.idempotency_key is not null and a.new_id is not null
    order by a.item_id, a.customer_id, a.idempotency_key
    on conflict do nothing
    returning order_id
  ), placed as (
    insert into flashsale_data.orders (
      order_id, item_id, ticket, customer_id, status, created_at)
    select
      a.new_id, a.item_id, flashsale.ticket_of(a.new_id), a.customer_id, 'entered', v_now
    from asked a
    where a.new_id is not null
      and (a.idempotency_key is null or a.new_id in (select c.order_id from claimed c))
    order by a.item_id, a.customer_id
    on conflict (item_id, customer_id) where ended_at is null do nothing
    returning order_id
  ), tallied as (
    insert into flashsale_data.tallies (item_id, paid, gaps_in_line, entered)
    select flashsale.item_of(p.order_id), 0, 0, count(*)
    from placed p
    group by flashsale.item_of(p.order_id)
  ), mailed as (
    insert into pgmq.q_notifications (vt, message) -- as enqueue_mail does
    select clock_timestamp(), jsonb_build_object('kind', 'entered', 'order_id', p.order_id)
    from placed p
    order by p.order_id
  )
  select
    array_agg(
      case
        when a.outcome = 'entered' and a.order_id is null then
          case when a.new_id in (select p.order_id from placed p) then 'entered' end
        else a.outcome
      end
      order by a.ord),
    array_agg(coalesce(a.order_id, a.new_id) order by a.ord)
  into outcomes, order_ids
  from asked a;
end
$$;

comment on function flashsale.enter(integer[], text[], text[], text[], bigint[]) is
$$Inserts the keys, the orders and the e-mails of requests that enter a draw
Those whose outcome is `entered` and that have no order yet. outcomes: entered; null if the entries
have ended, or a duplicate of the request came first, so that it has to be looked up again.$$;
