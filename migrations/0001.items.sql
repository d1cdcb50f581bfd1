-- Items: what is on sale, and the counters of its line. Written by operators and sweeps only;
-- reserve reads the row without a lock, so nothing here is ever contended by customers.
create schema if not exists flashsale_data;

revoke all on schema flashsale_data from public;

create type flashsale_data.late_payment as enum (
  'refund',       -- money that comes after the hold ended goes back
  'keep_if_free'  -- ... unless a unit is free and nobody waits: then it buys a new order
);

create table flashsale_data.items (
  item_id integer generated always as identity,
  sku text not null,
  name text not null,
  price bigint not null,                  -- minor units of currency
  currency text not null,                 -- ISO 4217
  stock integer not null,                 -- units on sale, sold ones included
  forfeited integer not null default 0,   -- tickets served in vain: recycled orders
  now_serving integer not null generated always as (stock + forfeited) stored,
  withdrawing integer not null default 0, -- units to be withdrawn from the next forfeits
  paid integer not null default 0,        -- paid orders, as folded from tallies
  gaps_in_line integer not null default 0, -- tickets in the line that nobody holds any more
  settled integer not null default 0,     -- every ticket up to here has its row: no holes
  noted_ticket integer not null default 0, -- the line's last ticket when a sweep looked ...
  noted_xid xid8,                         -- ... and a transaction id given out after that
  hold_seconds integer not null,
  max_waiting integer,                    -- null: the line has no limit
  late_payment flashsale_data.late_payment not null default 'refund',
  paused boolean not null default false,
  opens_at timestamptz,                   -- null: open since ever
  closes_at timestamptz,                  -- null: open for ever
  line regclass not null,                 -- the sequence that hands out this item's tickets
  created_at timestamptz not null,
  constraint items_pkey primary key (item_id),
  constraint items_sku_is_unique unique (sku),
  constraint items_sku_is_short check (length(sku) between 1 and 64),
  constraint items_name_is_short check (length(name) between 1 and 200),
  constraint items_price_is_positive check (price between 1 and 1000000000000),
  constraint items_currency_is_iso check (currency ~ '^[A-Z]{3}$'),
  constraint items_stock_is_in_range check (stock between 0 and 10000000),
  constraint items_hold_is_in_range check (hold_seconds between 1 and 604800),
  constraint items_max_waiting_is_in_range check (max_waiting between 0 and 10000000),
  constraint items_debt_is_covered check (withdrawing between 0 and stock),
  constraint items_opens_before_it_closes check (opens_at < closes_at)
) with (fillfactor = 50); -- sweeps update counters in place (HOT)
