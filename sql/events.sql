create or replace function flashsale.events(p_after bigint default 0, p_limit integer default 100)
returns setof flashsale.event_row
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_forgotten_through constant bigint := (
    select f.forgotten_through from flashsale_data.feed f where f.one_row);
begin
  if coalesce(p_after < 0 or p_limit not between 1 and 1000, true) then
    raise exception 'Events are read after an event, 1 to 1000 at once.' using
      errcode = 'RV302', constraint = 'bad_value',
      detail = format('after %s, limit %s', p_after, p_limit),
      hint = 'Pass the event_id of the last event that you have, or 0 to begin with the oldest.';
  elsif p_after > 0 and p_after < v_forgotten_through then
    raise exception 'Events after this one have been deleted by now.' using
      errcode = 'RV214', constraint = 'cursor_expired',
      detail = format('after %s, and events up to %s are deleted', p_after, v_forgotten_through),
      hint = 'Begin with the oldest event that is there, and read the orders anew that you keep.';
  end if;
  return query
  select
    e.event_id, e.type, e.at, e.item_id, flashsale.shown_id(e.order_id),
    coalesce(e.data, '{}') || case
      when e.order_id is null then '{}'
      else jsonb_build_object('customer_id', (
        select o.customer_id from flashsale_data.orders o
        where o.order_id = flashsale.current_id(e.order_id)))
    end
  from flashsale_data.events e
  where e.event_id > greatest(p_after, v_forgotten_through)
  order by e.event_id
  limit p_limit;
end
$$;

comment on function flashsale.events(bigint, integer) is
$$What happened, in an order in which nothing is ever added before the end
p_after: the event_id of the last event that you have; 0 begins with the oldest. p_limit: at most so
many, 1 to 1,000. Numbers ascend, with gaps. An event is there about a second after it happened. The
events of one order are in the order in which they happened. No event ever appears behind one that
somebody could read, so the last event_id is a cursor. docs/reference/events.md lists the types.
Errors: RV214 events after p_after have been deleted, RV302 p_after or p_limit is out of range.$$;
