-- Money: one row an attempt, the provider's events as they came, and jobs that gave up.
create type flashsale_data.payment_status as enum (
  'requested',  -- -> open (session opened), voided (not needed any more), or as open
  'open',       -- -> succeeded, failed, voided (hold ended, provider confirmed), refund_due
  'succeeded',  -- final: the order is paid
  'failed',     -- -> succeeded or refund_due, if money comes after all
  'voided',     -- -> refund_due, if money comes after all
  'refund_due', -- -> refunded
  'refunded'    -- final
);

-- No foreign key to orders: its check would lock the order's row for every hold that is granted.
-- Orders are never deleted, and flashsale.violation looks for orphans.
create table flashsale_data.payments (
  payment_id bigint generated always as identity,
  order_id bigint,                 -- null: money that names no payment of ours
  amount bigint not null,          -- what is asked for; once money came, what came
  currency text not null,
  status flashsale_data.payment_status not null default 'requested',
  tried boolean not null default false, -- the provider may have been called
  requested_at timestamptz not null,
  opened_at timestamptz,
  ended_at timestamptz,
  session_id text,                 -- the provider's name for this attempt
  checkout_url text,
  refund_reason text,
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
  amount bigint,
  currency text,
  occurred_at timestamptz,  -- by the provider's clock
  received_at timestamptz not null,
  outcome text,             -- what it led to
  constraint payment_events_pkey primary key (event_id)
);

create table flashsale_data.dead_letters (
  dead_letter_id bigint generated always as identity,
  queue text not null,
  message jsonb not null,
  tries integer not null,
  error text,
  enqueued_at timestamptz not null,
  died_at timestamptz not null,
  constraint dead_letters_pkey primary key (dead_letter_id)
);
