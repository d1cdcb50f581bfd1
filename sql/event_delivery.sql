-- The delivery of the feed to FLASHSALE_EVENTS_URL: in order, and each event at least once.
--
-- A table of one row knows the last event that was delivered, and which worker delivers. Events
-- are numbered in the order in which they appear in the feed, so this number is all that is needed.
-- take_events leases the delivery to a worker for some seconds, and gives it the events that
-- follow. The worker makes one delivery after the other, without a transaction, and says with
-- events_delivered how far it has come, which also begins its lease anew. It begins no delivery
-- that could last longer than its lease. So a worker that takes over begins when no delivery of the
-- other one is under way any more, with the first event that was not noted: it may repeat some, and
-- leaves out none. lease_id, which is new for each lease, keeps a worker that was away for too long
-- from noting anything.
--
-- An event that the receiver does not take is noted by event_failed, with the time of the next try.
-- Nobody has a lease until then. It is tried for as long as it takes, because only people can
-- decide that a receiver may miss an event: skip_event and move_event_cursor are for that. It is
-- the same if the feed has deleted events, because of their age, before they were delivered.
create or replace function flashsale.is_on(p_from timestamptz, p_until timestamptz)
returns boolean
language sql stable set search_path = pg_catalog, pg_temp
as $$
  select coalesce(p_from <= flashsale.clock() and p_until > flashsale.clock(), false)
$$;

comment on function flashsale.is_on(timestamptz, timestamptz) is
$$Whether a lease or a pause lasts still
One that begins in the future is over, because then the clock has gone back.$$;

create or replace function flashsale.has_missed_events(p_delivered_id bigint) returns boolean
language sql stable set search_path = pg_catalog, pg_temp
as $$
  select p_delivered_id > 0 and exists (
    select from flashsale_data.feed f where f.one_row and f.forgotten_through > p_delivered_id)
$$;

comment on function flashsale.has_missed_events(bigint) is
$$Whether the feed has deleted events that come after this one$$;

create or replace view flashsale.event_delivery as
select
  d.delivered_id, d.delivered_at,
  n.behind,
  greatest(0, extract(epoch from flashsale.clock() - n.at))::double precision
    as oldest_undelivered_seconds,
  d.failures,
  case
    when d.delivered_id > 0 and n.forgotten_through > d.delivered_id
      then 'events were deleted before they were delivered: move_event_cursor'
    else d.error
  end as error,
  d.failing_since, d.failed_at, d.retry_at,
  case when flashsale.is_on(d.leased_at, d.lease_until) then d.worker end as worker,
  case when flashsale.is_on(d.leased_at, d.lease_until) then d.lease_until end as lease_until
from flashsale_data.event_deliveries d
cross join lateral (
  select
    (
      select count(*) from (
        select from flashsale_data.events e
        where e.event_id > d.delivered_id
        order by e.event_id -- by the index: a plan without it may read all events
        limit 10000
      ) c) as behind,
    (select f.forgotten_through from flashsale_data.feed f where f.one_row) as forgotten_through,
    (
      select e.at from flashsale_data.events e
      where e.event_id > d.delivered_id
      order by e.event_id
      limit 1) as at
) n;

comment on view flashsale.event_delivery is
$$How far the feed was delivered to FLASHSALE_EVENTS_URL: one row
No row: nothing was ever to be delivered. It shows the same lag if no worker has that setting any
more.$$;

comment on column flashsale.event_delivery.delivered_id is
  'The last event that was delivered, or left out by staff; 0: none.';
comment on column flashsale.event_delivery.delivered_at is
  'When it was delivered; null: none was.';
comment on column flashsale.event_delivery.behind is
  'How many events come after it; 10000: so many or more. A healthy receiver is a few behind.';
comment on column flashsale.event_delivery.oldest_undelivered_seconds is
  'How long ago the next of them happened; 0: there is none.';
comment on column flashsale.event_delivery.failures is
  'How many tries of the next event have failed.';
comment on column flashsale.event_delivery.error is
  'Why the last of them failed: no answer, or the status of the answer; or why none is made.';
comment on column flashsale.event_delivery.failing_since is 'When the first of them failed.';
comment on column flashsale.event_delivery.failed_at is 'When the last of them failed.';
comment on column flashsale.event_delivery.retry_at is 'When the next event is tried again.';
comment on column flashsale.event_delivery.worker is
  'The worker that is delivering: worker:<host>:<pid>; null: none is right now.';
comment on column flashsale.event_delivery.lease_until is
  'Until when no other worker delivers, unless it says that it has come on.';

create or replace function flashsale.lock_event_delivery() returns flashsale_data.event_deliveries
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_delivery flashsale_data.event_deliveries;
begin
  insert into flashsale_data.event_deliveries (one_row) values (true) on conflict do nothing;
  select d.* into v_delivery from flashsale_data.event_deliveries d where d.one_row for update;
  return v_delivery;
end
$$;

comment on function flashsale.lock_event_delivery() is
$$Locks the row of the delivery for a member of staff; makes it if need be$$;

create or replace function flashsale.put_event_cursor(
  p_delivery flashsale_data.event_deliveries, p_event_id bigint, p_action text, p_reason text,
  p_staff text)
returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
  update flashsale_data.event_deliveries d
  set
    delivered_id = p_event_id,
    lease_id = d.lease_id + 1, -- a worker that delivers can't note any more how far it has come
    failures = 0, error = null, failing_since = null, failed_at = null, retry_at = null
  where d.one_row;
  perform flashsale.note_history(
    coalesce(p_staff, session_user), p_action, null,
    jsonb_build_object(
      'delivered_id', p_delivery.delivered_id, 'failures', p_delivery.failures,
      'error', p_delivery.error),
    jsonb_build_object('delivered_id', p_event_id),
    p_reason);
end
$$;

comment on function flashsale.put_event_cursor(
  flashsale_data.event_deliveries, bigint, text, text, text) is
$$Makes the delivery go on after this event, and notes that in history
p_delivery: as it was before. A worker that is delivering finishes that delivery; the next one is
made when its lease is over.$$;
