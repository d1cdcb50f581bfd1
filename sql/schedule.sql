-- The jobs of pg_cron, in databases that have it. This file is replayed at each migrate, because a
-- job in a restored dump names the server that the dump was made from. A job that is right is left
-- alone, also if an operator has deactivated it.
do $$
declare
  v_version text := (select e.extversion from pg_extension e where e.extname = 'pg_cron');
  v_job record;
begin
  if v_version is null then
    return;
  end if;
  if not has_schema_privilege('cron', 'usage') then
    raise notice 'pg_cron is here, but % may not use it: grant usage on schema cron', current_user;
    return;
  end if;
  for v_job in
    select w.name, w.schedule, w.command, j.jobid
    from (
      values
        ('flashsale sweep',
          case when regexp_match(v_version, '^(\d+)\.(\d+)')::integer[] >= '{1,5}'
            then '1 second' else '* * * * *' end,
          'call flashsale.sweep_for_a_minute()'),
        ('flashsale purge', '7 * * * *',
          $job$
          delete from cron.job_run_details where end_time < clock_timestamp() - interval '1 day'
          $job$)
    ) w (name, schedule, command)
    left join cron.job j on j.jobname = w.name
    where (j.schedule, j.command, j.nodeport, j.database, j.username) is distinct from
      (w.schedule, w.command, current_setting('port')::integer, current_database()::text,
        current_user::text)
  loop
    perform cron.unschedule(v_job.jobid) where v_job.jobid is not null;
    perform cron.schedule(v_job.name, v_job.schedule, v_job.command);
  end loop;
end
$$;
