-- Money: one row per attempt to pay an order, and the payment provider's events as they came.
create type flashsale_data.payment_status as enum (
  'requested',  -- -> open (session opened), voided (not needed any more), or like open
  'open',       -- -> succeeded, failed, voided (hold ended, provider confirmed), refund_due
  'succeeded',  -- final: the order is paid
  'failed',     -- -> succeeded or refund_due, if money comes after all
  'voided',     -- -> refund_due, if money comes after all
  'refund_due', -- -> refunded
  'refunded'    -- final
);

-- A new hold has a payment job, but no row here yet. The first attempt gets its row when the worker
-- takes the job, and has the order's id. Further attempts, and money that names no order, are
-- numbered from 2^59 on, which is after every order's id (items_ids_are_below_those_of_payments).
-- So the latest attempt of an order has the largest id.
--
-- There is no foreign key to orders: its check would lock the order's row for every hold that is
-- granted. Orders are never deleted, and flashsale.violation looks for payments without an order.
create table flashsale_data.payments (
  payment_id bigint generated always as identity (start with 576460752303423488),
  order_id bigint,                      -- null: a stray, money that names no payment of ours
  amount bigint not null,               -- minor units requested; once money came, what came
  currency text not null,               -- ISO 4217
  status flashsale_data.payment_status not null default 'requested',
  tried boolean not null default false, -- the provider may have been called for it
  requested_at timestamptz not null,
  opened_at timestamptz,
  ended_at timestamptz,                 -- when money came, or it failed or was voided
  session_id text,                      -- the provider's name for this attempt
  checkout_url text,                    -- where the customer pays
  refund_reason text,                   -- wrong_amount, superseded, late or stray
  constraint payments_pkey primary key (payment_id),
  constraint payments_open_has_a_session check (status <> 'open' or session_id is not null),
  constraint payments_refund_has_a_reason check (
    (status in ('refund_due', 'refunded')) = (refund_reason is not null)),
  constraint payments_active_attempts_have_not_ended check (
    (status in ('requested', 'open')) = (ended_at is null)),
  constraint payments_success_has_an_order check (status <> 'succeeded' or order_id is not null)
) with (fillfactor = 80);

create unique index payments_one_per_session on flashsale_data.payments (session_id)
  where session_id is not null;

create index payments_order_id_payment_id on flashsale_data.payments (order_id, payment_id);

-- The predicate names ended_at and not the status, for the reason at orders_one_live_per_customer.
create unique index payments_one_active_attempt on flashsale_data.payments (order_id)
  where ended_at is null;

create unique index payments_one_success_per_order on flashsale_data.payments (order_id)
  where status = 'succeeded';

create index payments_payment_id_refund_due on flashsale_data.payments (payment_id)
  where status = 'refund_due';

create table flashsale_data.payment_events (
  event_id text not null,
  type text not null,
  session_id text not null,
  payment_id text,          -- as the provider sent it, ours or not
  amount bigint,            -- minor units
  currency text,
  occurred_at timestamptz,  -- by the provider's clock
  received_at timestamptz not null,
  outcome text,             -- what it led to
  constraint payment_events_pkey primary key (event_id)
);
