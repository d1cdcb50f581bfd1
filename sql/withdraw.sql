-- now_serving must not go down, so free units leave the sale by tickets, as if customers had bought
-- them: withdraw takes unused tickets, inserts a void order for each, counts it into forfeited at
-- once, and lowers stock by as many. Units that are not free now are a debt in `withdrawing`, which
-- the next forfeits pay off (see promote).
create or replace function flashsale.withdraw(p_item_id integer, p_units integer)
returns flashsale.item_status
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_item flashsale_data.items := flashsale.lock_item(p_item_id);
  v_now timestamptz := flashsale.clock();
  v_possible integer;
begin
  select v_item.stock - v_item.withdrawing - v_item.paid - coalesce(sum(t.paid), 0)
  into v_possible
  from flashsale_data.tallies t
  where t.item_id = p_item_id;
  if coalesce(p_units < 1, true) then
    raise exception 'Withdraw at least 1 unit.' using
      errcode = 'RV302', constraint = 'bad_value', detail = format('units %s', p_units);
  elsif p_units > v_possible then
    raise exception 'Only % of the units can still be withdrawn.', v_possible using
      errcode = 'RV204', constraint = 'withdraw_too_much',
      detail = format('asked for %s; of %s units the others are paid or already being withdrawn',
        p_units, v_item.stock),
      hint = 'Withdraw fewer units.';
  end if;
  with free as (
    select nextval(v_item.line)::integer as ticket
    from generate_series(1, least(p_units,
      v_item.now_serving - coalesce(pg_sequence_last_value(v_item.line), 0)))
  ), voided as (
    insert into flashsale_data.orders (
      order_id, item_id, ticket, status, created_at, ended_at, recycled)
    select
      flashsale.order_id_of(p_item_id, f.ticket), p_item_id, f.ticket, 'void', v_now, v_now,
      f.ticket <= v_item.now_serving
    from free f
    returning recycled
  ), counted as (
    select
      count(*) filter (where v.recycled)::integer as units,
      count(*) filter (where not v.recycled)::integer as gaps -- requests came first
    from voided v
  )
  update flashsale_data.items i
  set
    stock = i.stock - c.units,
    forfeited = i.forfeited + c.units,
    withdrawing = i.withdrawing + p_units - c.units,
    gaps_in_line = i.gaps_in_line + c.gaps
  from counted c
  where i.item_id = p_item_id;
  return flashsale.item_status(p_item_id);
end
$$;

comment on function flashsale.withdraw(integer, integer) is
$$Takes units off sale: free ones now, the others as they come back
p_units: at least 1. Never breaks a hold. The item's stock falls as units leave, and its withdrawing
says how many are still to go. Returns the item.
Errors: RV101 unknown item, RV204 more units than are not paid yet, RV302 less than 1 unit.$$;
