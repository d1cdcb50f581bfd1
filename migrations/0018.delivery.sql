-- How far the feed of events has been delivered to FLASHSALE_EVENTS_URL: one row, from the first
-- delivery on.
create table flashsale_data.event_deliveries (
  one_row boolean not null default true,
  delivered_id bigint not null default 0, -- the last event that was delivered, or left out by staff
  delivered_at timestamptz,
  -- The worker that delivers. lease_id is another number for each lease, so that a worker whose
  -- lease has gone can't note anything.
  lease_id bigint not null default 0,
  worker text,
  leased_at timestamptz,
  lease_until timestamptz,
  -- Of the event that is next.
  failures integer not null default 0,
  error text,
  failing_since timestamptz,
  failed_at timestamptz,
  retry_at timestamptz,
  constraint event_deliveries_pkey primary key (one_row),
  constraint event_deliveries_is_one_row check (one_row)
);

create type flashsale.event_job as (
  lease_id bigint,
  failures integer,
  event_id bigint,
  type text,
  at timestamptz,
  item_id integer,
  order_id bigint,
  data jsonb
);
