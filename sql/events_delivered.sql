create or replace function flashsale.events_delivered(
  p_lease_id bigint, p_event_id bigint, p_lease_seconds integer)
returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now constant timestamptz := flashsale.clock();
begin
  update flashsale_data.event_deliveries d
  set leased_at = v_now, lease_until = v_now + p_lease_seconds * interval '1 second'
  where d.one_row and d.lease_id = p_lease_id;
  if not found then
    return false;
  end if;
  update flashsale_data.event_deliveries d
  set
    delivered_id = p_event_id, delivered_at = v_now,
    failures = 0, error = null, failing_since = null, failed_at = null, retry_at = null
  where d.one_row and p_event_id > d.delivered_id;
  return true;
end
$$;

comment on function flashsale.events_delivered(bigint, bigint, integer) is
$$Records how far the delivery has come; returns whether the lease counts
p_event_id: the last event that was delivered; null: none was since the last call. p_lease_seconds:
the lease lasts so long from now on; 0: it ends. False: another worker has the lease, or staff have
moved the cursor; nothing changes.$$;
