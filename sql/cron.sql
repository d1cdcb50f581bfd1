-- Sweeping by pg_cron, in databases that have it. pg_cron runs one instance of a job at a time. An
-- instance sweeps four times per second for slightly more than a minute, so the next one is due
-- before it ends and starts at once. pg_cron 1.4 has schedules in minutes only; with later versions
-- the schedule is one second, so that an instance that failed is replaced within a second. When the
-- system clock goes back, pg_cron and pg_sleep do nothing until it has reached the old time again,
-- and SQL has no other way to sleep. The worker does not have this problem, because it sweeps by a
-- monotonic clock. The view sweep_status shows which runners have stopped.
create or replace procedure flashsale.sweep_for_a_minute()
language plpgsql
as $$
declare
  v_end constant timestamptz :=
    date_trunc('minute', clock_timestamp()) + interval '61 seconds';
  v_more boolean;
begin
  -- A procedure with settings can't commit, so there is no search_path here, and all names are
  -- qualified.
  loop
    call flashsale.sweep_round(v_more);
    exit when clock_timestamp() >= v_end;
    perform pg_catalog.pg_sleep(case when v_more then 0 else 0.25 end);
  end loop;
end
$$;

comment on procedure flashsale.sweep_for_a_minute() is
$$Sweeps four times per second until the next minute; for pg_cron
It commits after each item, so it must be the whole command.$$;

-- The worker does the same in src/flashsale/worker/run.py.
create or replace procedure flashsale.sweep_round(inout p_more boolean)
language plpgsql
as $$
declare
  v_holds constant integer := 100000;
  v_end timestamptz;
  v_due flashsale_data.due_item[];
  v_limit integer;
  v_item flashsale_data.due_item;
  v_done record;
begin
  v_due := array(
    select (b.item_id, null, b.overdue_ids, null)::flashsale_data.due_item
    from flashsale.begin_sweep('pg_cron', v_holds) b);
  commit;
  v_limit := greatest(100, 1000 / greatest(1, cardinality(v_due)));
  p_more := v_holds <= (
    select coalesce(sum(cardinality(d.overdue_ids)), 0) from unnest(v_due) d);
  v_end := clock_timestamp() + interval '0.5 seconds';
  while cardinality(v_due) > 0 and clock_timestamp() < v_end loop
    v_item := v_due[1];
    v_due := v_due[2:];
    v_done := flashsale.sweep_item(
      'pg_cron', v_item.item_id, v_item.overdue_ids[1:v_limit + 1], v_limit);
    commit;
    if v_done.more then -- again, after the others
      v_item.overdue_ids := v_item.overdue_ids[v_limit + 1:];
      v_due := v_due || v_item;
    end if;
  end loop;
  v_done := flashsale.publish_events();
  commit;
  p_more := p_more or cardinality(v_due) > 0 or v_done.more;
end
$$;

comment on procedure flashsale.sweep_round(boolean) is
$$Sweeps once, for pg_cron: one item per transaction, for half a second
p_more: there is more to do, call again at once.$$;
