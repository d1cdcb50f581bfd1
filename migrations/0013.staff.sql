-- The Idempotency-Keys of the calls that change something, except requests for units: those have
-- order_keys. A row is inserted in the transaction that has the effect. So another call with the
-- key waits for it, and goes on as the first one if that rolls back.
create table flashsale_data.request_keys (
  scope text not null,           -- the customer who asks; empty: staff and tools
  idempotency_key text not null,
  fingerprint bytea not null,    -- of the verb and its arguments: the key is bound to them
  created_at timestamptz not null,
  result bigint,                 -- what the verb returned, if nothing else says so afterwards
  constraint request_keys_pkey primary key (scope, idempotency_key),
  constraint request_keys_key_is_short check (length(idempotency_key) between 1 and 255)
);

-- For purging keys by age.
create index request_keys_created_at on flashsale_data.request_keys (created_at);

create type flashsale.fairness_row as (
  ticket integer,
  customer text,
  is_you boolean,
  status text,
  asked_at timestamptz,
  served_at timestamptz,
  ended_at timestamptz
);
