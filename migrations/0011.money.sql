-- Money as it happens: settling, refunds of paid orders, payments at a till, outages of the payment
-- provider, and events that nobody can use.
--
-- The type order_status has the values settling and refunded already: a value can't be used in the
-- transaction that adds it, so `flashsale migrate` adds it before (flashsale.database.migrate).

-- In the order in which order_status reads them. Nothing below reads a table of orders or payments:
-- the CHECKs hold for rows that are written from now on (not valid), and there is no new index.
lock table flashsale_data.orders, flashsale_data.items, flashsale_data.payments,
  flashsale_data.payment_events in access exclusive mode;

alter table flashsale_data.orders
  add column settle_until timestamptz, -- of a settling order: then it expires; else null
  add column late_order_id bigint,     -- the order that this one's late money has bought
  drop constraint orders_paid_orders_have_been_paid,
  drop constraint orders_live_orders_have_not_ended;
-- Each statement sets the CHECKs up anew. So an array that is a constant is cheaper than `in`,
-- which makes the array each time.
alter table flashsale_data.orders
  add constraint orders_paid_orders_have_been_paid check (
    (status = any ('{paid,refunded}')) = (paid_at is not null)) not valid,
  add constraint orders_live_orders_have_not_ended check (
    (status = any ('{waiting,reserved,settling,paid}')) = (ended_at is null)) not valid;

comment on column flashsale_data.orders.reserved_at is
  'Null: it has never held a unit. A waiting order with it has lost its hold to an outage.';

-- check_terms has the limits of these. CHECKs for them would make each promotion slower.
alter table flashsale_data.items
  -- For how long after the deadline the provider is asked whether the money came in time.
  add column settle_seconds integer not null default 2,
  add column refund_seconds integer; -- for how long customers may give a paid order back; null: 0

alter table flashsale_data.payments
  add column captured_at timestamptz, -- when the money came, which may be before we heard of it
  add column refunded_at timestamptz,
  add column reference text,          -- the till's name of an offline payment; it has no session
  add column payable boolean not null default false, -- failed, but its session can still be paid
  -- What came of the last try to open it: at most one of these two.
  add column unavailable_at timestamptz, -- the provider did not answer
  add column refused_at timestamptz,     -- the provider said no
  -- The deadline of its hold, if the hold has gone back to the line since: with it the session is
  -- found again that the provider may have opened.
  add column expires_at timestamptz,
  -- The deadline with which its session was asked for, if staff have moved that of the order since.
  -- Another attempt has taken its place.
  add column asked_until timestamptz;

-- The references of offline payments. They are a table of their own, because a unique index on
-- payments would be made while nobody can pay.
create table flashsale_data.offline_references (
  reference text not null,
  order_id bigint not null,
  constraint offline_references_pkey primary key (reference),
  constraint offline_references_reference_is_short check (length(reference) between 1 and 255)
);

alter table flashsale_data.payment_events
  alter column type drop not null,       -- of events that nobody can use
  alter column session_id drop not null, -- the same
  add column payload text;               -- of such an event: as it came, at most 64 KiB

-- Whether the payment provider is down, as the workers know it: one row, if it has ever been down.
create table flashsale_data.provider_status (
  one_row boolean not null default true,
  down_since timestamptz, -- null: it answers
  noted_at timestamptz,   -- when it was known to be down the last time
  constraint provider_status_pkey primary key (one_row),
  constraint provider_status_is_one_row check (one_row)
);

-- What staff have done.
create table flashsale_data.history (
  history_id bigint generated always as identity,
  at timestamptz not null,
  staff text,     -- who; null: nobody of ours, the payment provider for example
  action text not null,
  item_id integer,
  order_id bigint,
  before jsonb,
  after jsonb,
  reason text,    -- in the words of the staff
  constraint history_pkey primary key (history_id)
);

create index history_order_id on flashsale_data.history (order_id) where order_id is not null;
create index history_item_id on flashsale_data.history (item_id, history_id);

alter type flashsale.order_row add attribute late_order_id bigint;
alter type flashsale.order_row add attribute reference text;
alter type flashsale.payment_job add attribute item_name text;
