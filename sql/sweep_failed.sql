create or replace function flashsale.sweep_failed(p_runner text, p_item_id integer, p_error text)
returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  perform flashsale.note_failure(p_runner, p_item_id, p_error);
  perform flashsale.note_sweep(p_runner, 0, 0, 0, 1);
end
$$;

comment on function flashsale.sweep_failed(text, integer, text) is
$$For runners: notes that sweep_item itself failed, or took too long
The item is left out for a moment, so that it does not cost the others their time each time.$$;

create or replace function flashsale.note_failure(p_runner text, p_item_id integer, p_error text)
returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_now constant timestamptz := flashsale.clock();
begin
  update flashsale_data.sweep_failures f
  set
    failures = f.failures + 1,
    error = p_error,
    failed_at = v_now,
    retry_at = v_now + least(60, 0.25 * 2 ^ least(f.failures, 10)) * interval '1 second'
  where f.sweep_failure_id = (
    select l.sweep_failure_id from flashsale_data.sweep_failures l
    where l.item_id = p_item_id and l.runner = p_runner
    limit 1
    for no key update skip locked);
  if not found then
    insert into flashsale_data.sweep_failures (
      item_id, runner, failures, error, since, failed_at, retry_at)
    select p_item_id, p_runner, 1, p_error, v_now, v_now, v_now + interval '0.25 second'
    where not exists (
      select from flashsale_data.sweep_failures f
      where f.item_id = p_item_id and f.runner = p_runner);
  end if;
  -- What has not failed again for so long was mended in another way.
  delete from flashsale_data.sweep_failures f
  where f.sweep_failure_id = any (array(
    select o.sweep_failure_id from flashsale_data.sweep_failures o
    where o.failed_at < v_now - interval '10 minutes'
    for update skip locked));
end
$$;

comment on function flashsale.note_failure(text, integer, text) is
$$Records for sweep_failure that the sweep of an item failed
The item is left out until a quarter of a second has passed, then twice as long each time, up to a
minute. Never waits.$$;
