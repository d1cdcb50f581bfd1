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
    select s.more into v_more from flashsale.sweep('pg_cron') s;
    commit;
    exit when clock_timestamp() >= v_end;
    perform pg_catalog.pg_sleep(case when v_more then 0 else 0.25 end);
  end loop;
end
$$;

comment on procedure flashsale.sweep_for_a_minute() is
$$Sweeps four times per second until the next minute; for pg_cron
It commits after each sweep, so it must be the whole command.$$;
