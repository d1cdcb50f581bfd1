-- Retention of the feed. What is deleted is always the beginning of the feed.
create or replace function flashsale.forget_events(
  p_older_than interval, p_limit integer default 10000)
returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_before constant timestamptz := flashsale.clock() - p_older_than;
  v_last bigint;
  v_forgotten integer;
begin
  perform from flashsale_data.feed f where f.one_row for no key update skip locked;
  if not found then
    return 0;
  end if;
  select max(b.event_id) into v_last
  from (
    select e.event_id, bool_and(e.at < v_before) over (order by e.event_id) as is_old
    from (
      select n.event_id, n.at
      from flashsale_data.events n
      where n.event_id > (select f.forgotten_through from flashsale_data.feed f where f.one_row)
      order by n.event_id
      limit p_limit
    ) e
  ) b
  where b.is_old;
  delete from flashsale_data.events e
  where e.event_id <= v_last
    and e.event_id > (select f.forgotten_through from flashsale_data.feed f where f.one_row);
  get diagnostics v_forgotten = row_count;
  update flashsale_data.feed f set forgotten_through = v_last
  where f.one_row and v_last is not null;
  return v_forgotten;
end
$$;

comment on function flashsale.forget_events(interval, integer) is
$$Deletes the oldest events of the feed; returns how many
p_older_than: those that happened longer ago than this. p_limit: at most so many; call again while
it returns so many. Never waits: if a publisher is at work, it does nothing. A cursor from before
what was deleted is refused from then on (RV214).$$;
