-- Filling the holes of an item's line. A ticket whose transaction rolled back, or that the sequence
-- skipped in a crash, has no order: it is a hole. A hole must be filled with a void order, because
-- otherwise nobody would ever recycle it, and the unit that it stands for would be lost.
--
-- The danger is to take a ticket for a hole while the transaction that holds it is still running.
-- A hole is filled only if nobody can still be about to insert that order. To know this takes three
-- visits, each in a transaction of its own:
--
-- 1. Note the line's last ticket (noted_ticket). All tickets up to it have been taken by now.
-- 2. Note a transaction id (noted_xid) that was given out after that: this visit's own.
-- 3. Wait until every transaction older than noted_xid has ended: until pg_snapshot_xmin, which is
--    the oldest id that is still running, has reached noted_xid. A request has its transaction id
--    before it takes its ticket (reserve sees to that). So all requests that took a ticket up to
--    noted_ticket have an older id than noted_xid, and all of them have ended. A ticket that has no
--    order then will never have one: fill it.
--
-- Two visits would not do. If noted_ticket and noted_xid were noted in one visit, a request might
-- get a transaction id above noted_xid before the ticket is read, and take a ticket below
-- noted_ticket.
create or replace function flashsale.fill(p_item_id integer, p_limit integer default 10000)
returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := flashsale.clock();
  v_item flashsale_data.items;
  v_last integer;
  v_filled integer := 0;
begin
  select * into v_item from flashsale_data.items i
  where i.item_id = p_item_id
  for no key update skip locked;
  if not found then
    return 0;
  end if;

  if v_item.noted_xid <= pg_snapshot_xmin(pg_current_snapshot()) then
    v_item.settled := least(v_item.noted_ticket, coalesce( -- withdrawn tickets have no orders
      flashsale.withdrawn_through(p_item_id, v_item.settled + 1), v_item.settled));
    v_last := least(v_item.noted_ticket, v_item.settled::bigint + p_limit);
    insert into flashsale_data.orders (order_id, item_id, ticket, status, created_at, ended_at)
    select
      flashsale.order_id_of(p_item_id, t.ticket), p_item_id, t.ticket, 'void', v_now, v_now
    from generate_series(v_item.settled + 1, v_last) t (ticket)
    where not exists (
      select from flashsale_data.orders o
      where o.order_id = flashsale.order_id_of(p_item_id, t.ticket)
      offset 0) -- keeps this a probe per ticket: a join may read all orders
      and flashsale.withdrawn_through(p_item_id, t.ticket) is null
    on conflict do nothing;
    get diagnostics v_filled = row_count;
    v_item.settled := v_last;
  end if;

  if v_item.settled = v_item.noted_ticket then -- the noted tickets are settled: begin anew
    v_item.noted_ticket := coalesce(pg_sequence_last_value(v_item.line), 0);
    v_item.noted_xid := null;
  elsif v_item.noted_xid is null then
    v_item.noted_xid := pg_current_xact_id();
  end if;
  update flashsale_data.items i
  set
    settled = v_item.settled,
    noted_ticket = v_item.noted_ticket,
    noted_xid = v_item.noted_xid,
    gaps_in_line = i.gaps_in_line + v_filled
  where i.item_id = p_item_id;
  return v_filled;
end
$$;

comment on function flashsale.fill(integer, integer) is
$$Fills holes in an item's line with void orders; returns how many
A hole is a ticket without an order: its request rolled back. Looks only at tickets that are older
than every running transaction, at most p_limit per call. Never waits: if another sweep or an
operator has locked the item, or if there is no such item, it does nothing.$$;
