-- Deleting an item: what a rehearsal leaves, or an old sale whose books are kept elsewhere. It is
-- done in steps of a limited size, each a transaction, and whatever ends a step, the next call goes
-- on.
--
-- * The first step takes the item's row out of items and notes the item in deleting_items. From
--   then on the item is unknown to every verb and every sweep.
-- * Each further step erases a number of orders with all that belongs to them. An order that money
--   has come for meanwhile is left until that money has gone back.
-- * The last step drops the sequence. By then no transaction knows of it but one that takes
--   tickets, which the drop would have to wait for.
--
-- What is in the feed stays there, until forget_events deletes the oldest. A reader whose cursor is
-- before it still gets all of it, in its order. An event has no customer of its own:
-- events() looks in orders, and finds nobody any more. The first step publishes what the outbox
-- has. What is about orders there later can't be published, and the last step deletes it.
--
-- A request may have read the item before it closed, and insert its order afterwards. While it
-- holds a ticket it has a lock on the sequence, so the first step finds it and refuses. If it was
-- stopped between reading the item and taking the ticket, its order appears later. If it waits, it
-- ends unserved, as the sale is over; if it is a hold, it is left until its deadline.
create or replace function flashsale.delete_item(
  p_item_id integer,
  p_reason text,
  p_staff text default null,
  p_limit integer default 10000,
  out deleted integer,
  out more boolean)
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_item flashsale_data.items;
  v_line regclass;
begin
  perform flashsale.check_act(p_staff, p_reason);
  deleted := 0;
  more := true;
  select * into v_item from flashsale_data.items i where i.item_id = p_item_id for update;
  if found then
    perform flashsale.begin_deleting(v_item, coalesce(p_staff, session_user), p_reason);
    return;
  end if;
  select d.line into v_line
  from flashsale_data.deleting_items d where d.item_id = p_item_id for update;
  if found then
    deleted := flashsale.erase_orders(p_item_id, least(greatest(1, p_limit), 100000));
    if deleted is null then
      deleted := 0;
    elsif deleted = 0 then
      perform flashsale.end_deleting(p_item_id, v_line);
      more := false;
    end if;
  elsif exists (
    select from flashsale_data.history h
    where h.item_id = p_item_id and h.action = 'delete_item')
  then
    more := false;
  else
    perform flashsale.raise_unknown_item(p_item_id);
  end if;
end
$$;

comment on function flashsale.delete_item(integer, text, text, integer) is
$$Deletes a closed item with all its orders, some at a time
p_item_id: an item whose sale has closed, and for which nothing is open or owed. p_reason: why, for
history, 1 to 1,000 characters. p_staff: who, for history, 1 to 128 characters; null: the login.
p_limit: at most so many orders per call, up to 100,000. deleted: how many orders this call has
erased; more: call again, until it is false. From the first call on the item is unknown to all
other verbs. Its events of payments, its history and its events in the feed stay, without customers;
history has the sums of what was sold.
Errors: RV101 unknown item, RV212 something is open (detail lists it), RV302 not a reason or a
name.$$;

create or replace function flashsale.order_ids_of(p_item_id integer, p_limit integer default null)
returns bigint[]
language sql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
  select array(
    select o.order_id
    from flashsale_data.orders o
    where o.order_id between
      flashsale.order_id_of(p_item_id, 0) and flashsale.order_id_of(p_item_id, 2147483647)
    order by o.order_id
    limit p_limit)
$$;

comment on function flashsale.order_ids_of(integer, integer) is
$$The ids of an item's orders, the lowest first; p_limit null: all$$;

create or replace function flashsale.begin_deleting(
  p_item flashsale_data.items, p_staff text, p_reason text)
returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_now constant timestamptz := flashsale.clock();
  v_open text[];
begin
  v_open := array(
    select 'its sale has not closed'
    where flashsale.shut_by(p_item.opens_at, p_item.closes_at, p_item.paused, v_now)
      is distinct from 'closed'
    union all
    select format('a request for a unit is running (process %s)', l.pid)
    from pg_locks l
    join pg_locks x -- readers of the line have no transaction id
      on x.virtualtransaction = l.virtualtransaction and x.locktype = 'transactionid' and x.granted
      and x.mode = 'ExclusiveLock'
    where l.relation = p_item.line and l.mode = 'RowExclusiveLock'
      and l.database = (select d.oid from pg_database d where d.datname = current_database())
      and l.pid is distinct from pg_backend_pid()
    union all
    (select w.what from flashsale.open_of(flashsale.order_ids_of(p_item.item_id)) w
      order by w.order_id));
  if v_open <> '{}' then
    perform flashsale.raise_still_open(v_open);
  end if;
  perform flashsale.publish_events(); -- later, nobody can announce its orders
  perform flashsale.note_history(
    p_staff, 'delete_item', null, flashsale.sums_of(p_item), '{"state": "deleted"}', p_reason,
    p_item.item_id);
  insert into flashsale_data.deleting_items (item_id, line, began_at)
  values (p_item.item_id, p_item.line, v_now);
  delete from flashsale_data.items i where i.item_id = p_item.item_id;
end
$$;

comment on function flashsale.begin_deleting(flashsale_data.items, text, text) is
$$Takes an item out of sight, if nothing is open or owed
The caller has locked the item. Errors: RV212 something is open.$$;

create or replace function flashsale.sums_of(p_item flashsale_data.items) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp
as $$
  select jsonb_build_object(
    'sku', p_item.sku, 'name', p_item.name, 'price', p_item.price, 'currency', p_item.currency,
    'stock', p_item.stock, 'created_at', p_item.created_at,
    'orders', (
      select coalesce(jsonb_object_agg(s.status, s.orders), '{}')
      from (
        select o.status, count(*) as orders
        from flashsale_data.orders o
        where o.order_id between flashsale.order_id_of(p_item.item_id, 0)
          and flashsale.order_id_of(p_item.item_id, 2147483647)
          and o.head_id is null
        group by o.status
      ) s),
    'money', (
      select coalesce(jsonb_object_agg(concat_ws(' ', m.status, m.currency), m.amount), '{}')
      from (
        select p.status, p.currency, sum(p.amount) as amount
        from flashsale_data.payments p
        where p.order_id between flashsale.order_id_of(p_item.item_id, 0)
            and flashsale.order_id_of(p_item.item_id, 2147483647)
          and p.status in ('succeeded', 'refunded')
        group by p.status, p.currency
      ) m))
$$;

comment on function flashsale.sums_of(flashsale_data.items) is
$$What is kept of a deleted item: its terms, and sums of orders and money$$;

create or replace function flashsale.erase_orders(p_item_id integer, p_limit integer)
returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_known constant bigint[] := flashsale.order_ids_of(p_item_id, p_limit);
  v_order_ids bigint[];
  v_ended integer;
begin
  v_order_ids := array(
    select o.order_id from flashsale_data.orders o
    where o.order_id = any (v_known)
    order by o.order_id
    for update skip locked);
  v_ended := flashsale.end_latecomers(v_order_ids);
  v_order_ids := array( -- the locks come first: now nobody begins anything new about these
    select u.id
    from unnest(v_order_ids) u (id)
    where u.id not in (
      select w.order_id from flashsale.open_of(v_order_ids) w where w.kind <> 'e-mail'));
  if v_order_ids = '{}' and v_ended > 0 then
    return null;
  elsif v_order_ids = '{}' and v_known <> '{}' then
    perform flashsale.raise_still_open(
      coalesce(nullif(array(select w.what from flashsale.open_of(v_known) w), '{}'),
        array['a transaction has locked an order']));
  end if;
  delete from pgmq.q_notifications q
  where flashsale.current_id(flashsale.id_in(q.message, 'order_id')) = any (v_order_ids);
  perform flashsale.without_dead_mail(v_order_ids);
  delete from flashsale_data.order_keys k
  using flashsale_data.orders o
  where o.order_id = any (v_order_ids)
    and k.customer_id = o.customer_id and k.item_id = p_item_id -- by the key
    and flashsale.current_id(k.order_id) = o.order_id;
  delete from flashsale_data.payments p where p.order_id = any (v_order_ids);
  delete from flashsale_data.offline_references r where r.order_id = any (v_order_ids);
  delete from flashsale_data.drawn_entries e
  where e.order_id = any (v_order_ids) or e.entry_id = any (v_order_ids); -- not drawn
  delete from flashsale_data.orders o where o.order_id = any (v_order_ids);
  return cardinality(v_order_ids);
end
$$;

comment on function flashsale.erase_orders(integer, integer) is
$$Erases orders of an item that is being deleted; returns how many
All that belongs to an order goes with it. A table that belongs to orders belongs here:
tests/test_delete_item.py looks for those that are missing. An order that has something open by now
is left. Null: some were only ended. Errors: RV212 there are only such orders, or locked ones.$$;

-- See above: orders that were inserted after the item was taken out of sight. Sweeps do nothing for
-- them.
create or replace function flashsale.end_latecomers(p_order_ids bigint[]) returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_now constant timestamptz := flashsale.clock();
  v_expired bigint[];
begin
  update flashsale_data.orders o
  set status = 'unserved', ended_at = v_now
  where o.order_id = any (p_order_ids) and o.status = 'waiting';
  with expired as (
    update flashsale_data.orders o
    set status = 'expired', ended_at = v_now
    where o.order_id = any (p_order_ids) and o.status = 'reserved' and o.expires_at <= v_now
    returning o.order_id
  )
  select array_agg(e.order_id) into v_expired from expired e;
  -- Their first attempts, which can't begin any more: their amount was the item's price.
  delete from pgmq.q_payments q
  where q.message ->> 'kind' = 'open'
    and flashsale.id_in(q.message, 'payment_id') = any (v_expired)
    and not exists (
      select from flashsale_data.payments p
      where p.payment_id = flashsale.id_in(q.message, 'payment_id'));
  delete from flashsale_data.dead_letters d
  where d.queue = 'payments' and d.message ->> 'kind' = 'open'
    and flashsale.id_in(d.message, 'payment_id') = any (v_expired)
    and not exists (
      select from flashsale_data.payments p
      where p.payment_id = flashsale.id_in(d.message, 'payment_id'));
  return flashsale.enqueue_voids(v_expired);
end
$$;

comment on function flashsale.end_latecomers(bigint[]) is
$$Ends orders of an item that is being deleted, without a sweep
The caller has locked them. Returns how many holds have expired.$$;

create or replace function flashsale.end_deleting(p_item_id integer, p_line regclass) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp set enable_seqscan = off set lock_timeout = '2s'
as $$
begin
  delete from flashsale_data.withdrawn_tickets w where w.item_id = p_item_id;
  delete from flashsale_data.tallies t where t.item_id = p_item_id;
  delete from flashsale_data.feed_lines l where l.item_id = p_item_id;
  delete from flashsale_data.sweep_failures f where f.item_id = p_item_id;
  delete from flashsale_data.draw_hashes h where h.item_id = p_item_id;
  delete from flashsale_data.draws d where d.item_id = p_item_id;
  delete from flashsale_data.feed_lines l where l.item_id = p_item_id;
  delete from flashsale_data.outbox o where flashsale.item_of(o.order_id) = p_item_id;
  delete from flashsale_data.deleting_items d where d.item_id = p_item_id;
  -- With create_item's, the only dynamic statement: DDL takes no parameters.
  execute format('drop sequence %s', p_line);
  if flashsale.order_ids_of(p_item_id, 1) <> '{}' then -- it came before the drop had its lock
    perform flashsale.raise_still_open(array['an order has come after all']);
  end if;
exception when lock_not_available then
  perform flashsale.raise_still_open(array['a transaction reads the item''s line']);
end
$$;

comment on function flashsale.end_deleting(integer, regclass) is
$$Deletes the rest of an item without orders, and drops its sequence
Errors: RV212 a transaction still reads its line, or has just inserted an order.$$;
