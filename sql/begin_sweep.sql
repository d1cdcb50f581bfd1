create or replace function flashsale.begin_sweep(p_runner text, p_limit integer default 100000)
returns table (item_id integer, overdue_ids bigint[])
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  perform flashsale.make_jobs_due_if_clock_went_back(p_runner);
  return query
  select d.item_id, d.overdue_ids from flashsale.items_due(p_runner, p_limit) d;
  perform flashsale.note_sweep(p_runner, 1, 0, 0, 0);
  perform flashsale.purge(200);
end
$$;

comment on function flashsale.begin_sweep(text, integer) is
$$For runners: the items that have something to do
Call sweep_item for each, in a transaction of its own, in this order: items with little to do
probably come first. p_runner: the name of the caller in sweep_status. overdue_ids: the item's holds
that are past their deadlines, or null. p_limit: at most so many holds over all items, the oldest
deadlines first; if there are so many, begin again at once. Items whose sweep failed a moment ago
are left out. Also deletes some of what is too old (purge).$$;
