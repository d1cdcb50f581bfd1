-- Each worker calls this a few times per second, and mostly there is nothing to do. So it looks
-- before it locks. The row is locked with skip locked: whoever has locked it, a worker or staff, is
-- deciding what comes next.
create or replace function flashsale.take_events(
  p_worker text, p_lease_seconds integer, p_limit integer)
returns setof flashsale.event_job
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_delivery flashsale_data.event_deliveries;
  v_now timestamptz;
begin
  select d.* into v_delivery from flashsale_data.event_deliveries d where d.one_row;
  if flashsale.is_on(v_delivery.leased_at, v_delivery.lease_until)
    or flashsale.is_on(v_delivery.failed_at, v_delivery.retry_at)
    or flashsale.has_missed_events(v_delivery.delivered_id)
    or not exists (select from flashsale.events(coalesce(v_delivery.delivered_id, 0), 1))
  then
    return;
  elsif v_delivery.one_row is null then
    insert into flashsale_data.event_deliveries (one_row) values (true) on conflict do nothing;
  end if;
  select d.* into v_delivery
  from flashsale_data.event_deliveries d where d.one_row for update skip locked;
  v_now := flashsale.clock();
  if not found
    or flashsale.is_on(v_delivery.leased_at, v_delivery.lease_until)
    or flashsale.is_on(v_delivery.failed_at, v_delivery.retry_at)
    or flashsale.has_missed_events(v_delivery.delivered_id)
  then
    return;
  end if;
  update flashsale_data.event_deliveries d
  set
    lease_id = d.lease_id + 1, worker = p_worker, leased_at = v_now,
    lease_until = v_now + p_lease_seconds * interval '1 second'
  where d.one_row;
  return query
  select
    v_delivery.lease_id + 1, v_delivery.failures, e.event_id, e.type, e.at, e.item_id, e.order_id,
    e.data
  from flashsale.events(v_delivery.delivered_id, p_limit) e
  order by e.event_id;
end
$$;

comment on function flashsale.take_events(text, integer, integer) is
$$Leases the delivery of events to the caller; returns the next events
p_worker: who, for the view event_delivery. p_lease_seconds: nobody else gets any for so long.
p_limit: at most so many. No rows: there is nothing to deliver, another worker delivers, the next
try of an event that has failed is later, or the next events were deleted before they were
delivered, which is for staff to decide about.$$;
