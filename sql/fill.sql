-- A ticket whose transaction rolled back, or that a crash skipped, is a hole. A hole is filled when
-- nobody can still be about to fill it himself. That takes three visits: note the line's last
-- ticket; note a transaction id given out later (this visit's own); and once every older
-- transaction has ended, whoever took one of those tickets has ended too (reserve has its
-- transaction id before its ticket), so what is missing then stays missing.
create function flashsale.fill(p_item_id integer, p_limit integer default 10000)
returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_first constant bigint := flashsale.order_id_of(p_item_id, 0);
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
    v_last := least(v_item.noted_ticket, v_item.settled::bigint + p_limit);
    insert into flashsale_data.orders (order_id, item_id, ticket, status, created_at, ended_at)
    select v_first + t.ticket, p_item_id, t.ticket, 'void', v_now, v_now
    from generate_series(v_item.settled + 1, v_last) t (ticket)
    where not exists (
      select from flashsale_data.orders o where o.order_id = v_first + t.ticket)
    on conflict do nothing;
    get diagnostics v_filled = row_count;
    v_item.settled := v_last;
  end if;

  if v_item.settled = v_item.noted_ticket then -- all that was noted is settled: note anew
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
Looks only at tickets older than every running transaction, at most p_limit a call. Never waits.$$;
