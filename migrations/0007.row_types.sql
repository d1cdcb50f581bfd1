-- The row types of the API. They are here, and not in sql/, because a type can not be replaced: a
-- client may have a table or a function of its own that uses it. A later migration may add an
-- attribute at the end (alter type ... add attribute).
create schema if not exists flashsale;

create type flashsale.order_row as (
  outcome text,
  order_id bigint,
  item_id integer,
  customer_id text,
  status text,
  ticket integer,
  position integer,
  created_at timestamptz,
  reserved_at timestamptz,
  expires_at timestamptz,
  paid_at timestamptz,
  ended_at timestamptz,
  payment_id bigint,
  payment_status text,
  amount bigint,
  currency text,
  checkout_url text,
  retry_at timestamptz
);

create type flashsale.payment_job as (
  job_id bigint,
  tries integer,
  kind text,
  payment_id bigint,
  order_id bigint,
  item_id integer,
  customer_id text,
  session_id text,
  amount bigint,
  currency text,
  expires_at timestamptz
);

create type flashsale.notification_job as (
  job_id bigint,
  tries integer,
  message jsonb
);
