-- now_serving must not go down, so free units leave the sale by tickets, as if customers had bought
-- them: withdraw takes unused tickets, counts each into forfeited at once, and lowers stock by as
-- many. These tickets have no orders. They are recorded as ranges, so that a million of them are a
-- single row. Units that are not free now are a debt in `withdrawing`, which the next forfeits pay
-- off (see promote).
--
-- A ticket that a rolled-back withdrawal took is a hole like any other, which fill finds.
create or replace function flashsale.withdrawn_through(p_item_id integer, p_ticket integer)
returns integer
language sql stable
as $$
  select w.last_ticket
  from (
    select r.last_ticket
    from flashsale_data.withdrawn_tickets r
    where r.item_id = p_item_id and r.first_ticket <= p_ticket
    order by r.first_ticket desc
    limit 1
  ) w
  where w.last_ticket >= p_ticket
$$;

comment on function flashsale.withdrawn_through(integer, integer) is
$$The last ticket of the withdrawn range that a ticket is in; else null$$;

create or replace function flashsale.withdraw(
  p_item_id integer,
  p_units integer,
  p_reason text default null,
  p_staff text default null,
  p_idempotency_key text default null)
returns flashsale.item_status
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_item flashsale_data.items;
begin
  perform flashsale.check_act(p_staff, coalesce(p_reason, 'none'));
  if not flashsale.is_repeated('', p_idempotency_key, 'withdraw',
    jsonb_build_object('item_id', p_item_id, 'units', p_units))
  then
    v_item := flashsale.lock_item(p_item_id);
    perform flashsale.take_units(v_item, p_units);
    perform flashsale.note_item('withdraw', p_item_id, v_item, p_reason, p_staff);
  end if;
  return flashsale.item_status(p_item_id);
end
$$;

comment on function flashsale.withdraw(integer, integer, text, text, text) is
$$Takes units off sale: free ones now, the others as they come back
p_units: 1 to 1,000,000, which take about a second. Never breaks a hold. The item's stock falls as
units leave, and its withdrawing says how many are still to go. p_reason, p_staff and
p_idempotency_key: as of restock. Returns the item.
Errors: RV101 unknown item, RV204 more units than are not paid yet, RV302 p_units, a reason, a name
or a key is out of range, RV304 the key was used for another request.$$;

create or replace function flashsale.take_units(p_item flashsale_data.items, p_units integer)
returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := flashsale.clock();
  v_possible integer;
begin
  -- Less than 0: units that were to be withdrawn as they came back are paid by now.
  select greatest(0, p_item.stock - p_item.withdrawing - p_item.paid - coalesce(sum(t.paid), 0))
  into v_possible
  from flashsale_data.tallies t
  where t.item_id = p_item.item_id;
  if coalesce(p_units not between 1 and 1000000, true) then
    raise exception 'Withdraw 1 to 1000000 units.' using
      errcode = 'RV302', constraint = 'bad_value', detail = format('units %s', p_units);
  elsif p_units > v_possible then
    raise exception 'Only % of the units can still be withdrawn.', v_possible using
      errcode = 'RV204', constraint = 'withdraw_too_much',
      detail = format('asked for %s; of %s units the others are paid or already being withdrawn',
        p_units, p_item.stock),
      hint = 'Withdraw fewer units.';
  elsif p_item.draw in ('entering', 'listing') then -- nobody gets a ticket yet
    update flashsale_data.items i set stock = i.stock - p_units where i.item_id = p_item.item_id;
    return;
  end if;
  with free as (
    select n.n, nextval(p_item.line)::integer as ticket
    from generate_series(1, least(p_units,
      p_item.now_serving - coalesce(pg_sequence_last_value(p_item.line), 0))) n (n)
  ), ranges as (
    select
      min(f.ticket) as first_ticket, max(f.ticket) as last_ticket, count(*)::integer as tickets,
      f.ticket <= p_item.now_serving as is_unit -- if not, requests came first
    from free f
    group by f.ticket - f.n, is_unit -- the difference grows with each ticket of somebody else
  ), withdrawn as (
    insert into flashsale_data.withdrawn_tickets (
      item_id, first_ticket, last_ticket, withdrawn_at)
    select p_item.item_id, r.first_ticket, r.last_ticket, v_now
    from ranges r
    where r.is_unit
  ), voided as (
    insert into flashsale_data.orders (order_id, item_id, ticket, status, created_at, ended_at)
    select
      flashsale.order_id_of(p_item.item_id, t.ticket), p_item.item_id, t.ticket, 'void', v_now,
      v_now
    from ranges r
    cross join generate_series(r.first_ticket, r.last_ticket) t (ticket)
    where not r.is_unit
  ), counted as (
    select
      coalesce(sum(r.tickets) filter (where r.is_unit), 0)::integer as units,
      coalesce(sum(r.tickets) filter (where not r.is_unit), 0)::integer as gaps
    from ranges r
  )
  update flashsale_data.items i
  set
    stock = i.stock - c.units,
    forfeited = i.forfeited + c.units,
    withdrawing = i.withdrawing + p_units - c.units,
    gaps_in_line = i.gaps_in_line + c.gaps
  from counted c
  where i.item_id = p_item.item_id;
end
$$;

comment on function flashsale.take_units(flashsale_data.items, integer) is
$$Withdraws units of an item that the caller has locked
Errors: RV204 more units than are not paid yet, RV302 p_units out of range.$$;
