-- pg_cron, where this database has it. One run at a time; a run sweeps four times a second for a
-- minute and a bit, so the next is due before it ends and starts at once. pg_cron 1.4 knows minutes
-- only; later versions also restart a run that failed within a second.
--
-- When the clock goes back, pg_cron and pg_sleep stand still until it is where it was: SQL knows no
-- other sleep. The worker sweeps by a monotonic clock, and sweep_status tells who has stopped.
create or replace procedure flashsale.sweep_for_a_minute()
language plpgsql
as $$
declare
  v_end constant timestamptz :=
    date_trunc('minute', clock_timestamp()) + interval '61 seconds';
  v_more boolean;
begin
  -- No set search_path here: a procedure with settings can't commit. So all names are qualified.
  loop
    select s.more into v_more from flashsale.sweep('pg_cron') s;
    commit;
    exit when clock_timestamp() >= v_end;
    perform pg_catalog.pg_sleep(case when v_more then 0 else 0.25 end);
  end loop;
end
$$;

comment on procedure flashsale.sweep_for_a_minute() is
$$Sweeps four times a second until the next minute has begun; for pg_cron
Commits after each sweep, so it must be the whole command.$$;

do $$
declare
  v_version text := (select e.extversion from pg_extension e where e.extname = 'pg_cron');
begin
  if v_version is null then
    return;
  end if;
  if not has_schema_privilege('cron', 'usage') then
    raise notice 'pg_cron is here, but % may not use it: grant usage on schema cron', current_user;
    return;
  end if;
  perform cron.schedule(
    'flashsale sweep',
    case when regexp_match(v_version, '^(\d+)\.(\d+)')::integer[] >= '{1,5}' then '1 second'
      else '* * * * *' end,
    'call flashsale.sweep_for_a_minute()');
  perform cron.schedule(
    'flashsale purge', '7 * * * *',
    $job$
    delete from cron.job_run_details where end_time < clock_timestamp() - interval '1 day'
    $job$);
end
$$;
