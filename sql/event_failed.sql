create or replace function flashsale.event_failed(
  p_lease_id bigint, p_error text, p_retry_seconds double precision)
returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now constant timestamptz := flashsale.clock();
begin
  update flashsale_data.event_deliveries d
  set
    failures = d.failures + 1, error = left(p_error, 1000), failed_at = v_now,
    failing_since = coalesce(d.failing_since, v_now),
    retry_at = v_now + least(3600, p_retry_seconds) * interval '1 second',
    leased_at = null, lease_until = null
  where d.one_row and d.lease_id = p_lease_id;
  return found;
end
$$;

comment on function flashsale.event_failed(bigint, text, double precision) is
$$Records that the receiver has not taken the next event; ends the lease
The next event is the one after what events_delivered was told. p_error: why, for people; 1,000
characters of it are kept. p_retry_seconds: when it is tried again; at most an hour. False: another
worker has the lease, or staff have moved the cursor; nothing changes.$$;
