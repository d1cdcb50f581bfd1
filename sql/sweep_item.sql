create or replace function flashsale.sweep_item(
  p_runner text,
  p_item_id integer,
  p_overdue_ids bigint[],
  p_limit integer,
  out more boolean,
  out error text)
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_item flashsale_data.due_item;
  v_done record;
begin
  v_item.item_id := p_item_id;
  v_item.overdue_ids := p_overdue_ids;
  if pg_current_xact_id_if_assigned() is null then
    v_item.last_ticket := flashsale.issued_tickets(p_item_id);
    v_item.draw_terms := (
      select d.terms from flashsale.draws_due(flashsale.clock()) d where d.item_id = p_item_id);
  end if;
  v_done := flashsale.serve_item(p_runner, v_item, p_limit);
  perform flashsale.note_sweep(
    p_runner, 0, v_done.expired, v_done.promoted, (v_done.error is not null)::integer);
  more := v_done.more;
  error := v_done.error;
end
$$;

comment on function flashsale.sweep_item(text, integer, bigint[], integer) is
$$For runners: does what is due for one item, as begin_sweep has listed it
p_limit: at most so many orders per step; more: there is more to do for this item. If the sweep of
this item fails, nothing is done for it, the failure is noted for sweep_failure, and error says what
it was. Never waits.$$;

-- An error at one item must not undo what was done for others, and must not keep them waiting. So
-- this is the one place that handles every error. Errors that say that the transaction should be
-- tried again as a whole go on to the caller. (A cancelled statement can't be handled anyway.)
create or replace function flashsale.serve_item(
  p_runner text,
  p_item flashsale_data.due_item,
  p_limit integer,
  out expired integer,
  out filled integer,
  out recycled integer,
  out promoted integer,
  out unserved integer,
  out more boolean,
  out error text)
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_expired integer;
  v_draw record;
  v_holes record;
  v_line record;
begin
  begin
    v_expired := flashsale.expire_holds(p_item.overdue_ids[1:p_limit]);
    perform flashsale.fold_tallies(p_item.item_id);
    v_draw := flashsale.draw(p_item.item_id, p_item.draw_terms, p_limit);
    v_holes := flashsale.fill_holes(p_item.item_id, p_item.last_ticket, p_limit);
    v_line := flashsale.promote(p_item.item_id, p_limit);
    perform flashsale.forget_failures(p_item.item_id);
    expired := v_expired;
    filled := v_holes.filled;
    recycled := v_line.recycled;
    promoted := v_line.promoted;
    unserved := v_line.unserved + v_draw.called_off;
    more := v_draw.more or v_holes.more or v_line.more
      or coalesce(cardinality(p_item.overdue_ids) > p_limit, false);
  exception
    when transaction_rollback then
      raise;
    when others then
      error := format('%s: %s', sqlstate, sqlerrm);
  end;
  if error is not null then
    expired := 0;
    filled := 0;
    recycled := 0;
    promoted := 0;
    unserved := 0;
    more := false;
    raise warning 'flashsale: the sweep of item % failed: %', p_item.item_id, error;
    perform flashsale.note_failure(p_runner, p_item.item_id, error);
  end if;
end
$$;

comment on function flashsale.serve_item(text, flashsale_data.due_item, integer) is
$$Does what is due for one item, or notes why that failed
Holds first, so that the units that they free are granted by the same visit.$$;

create or replace function flashsale.forget_failures(p_item_id integer) returns void
language sql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
  delete from flashsale_data.sweep_failures f
  where f.sweep_failure_id = any (array(
    select o.sweep_failure_id from flashsale_data.sweep_failures o
    where o.item_id = p_item_id
    for update skip locked))
$$;

comment on function flashsale.forget_failures(integer) is
$$Records that the sweep of an item works again$$;
