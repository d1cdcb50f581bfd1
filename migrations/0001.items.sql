-- Items: what is on sale, and the counters of its line. Only operators and sweeps write this table.
-- reserve reads an item's row without a lock, so customers never contend for it.
create schema if not exists flashsale_data;

revoke all on schema flashsale_data from public;

create type flashsale_data.late_payment as enum (
  'refund',       -- money that comes after the hold has ended is refunded
  'keep_if_free'  -- the same, unless a unit is free and nobody waits: then it buys a new order
);

create table flashsale_data.items (
  item_id integer generated always as identity,
  sku text not null,
  name text not null,
  price bigint not null,                    -- minor units of currency
  currency text not null,                   -- ISO 4217
  stock integer not null,                   -- units on sale, sold ones included
  forfeited integer not null default 0,     -- orders whose units went on to the next ticket
  now_serving integer not null generated always as (stock + forfeited) stored,
  withdrawing integer not null default 0,   -- units that the next forfeits withdraw from sale
  paid integer not null default 0,          -- paid orders, without those still in tallies
  gaps_in_line integer not null default 0,  -- tickets of orders that ended before they held a unit,
                                            -- until they are recycled; without those in tallies
  settled integer not null default 0,       -- every ticket up to this one has its order: no holes
  noted_ticket integer not null default 0,  -- the line's last ticket when a sweep looked ...
  noted_xid xid8,                           -- ... and a transaction id given out after that (fill)
  hold_seconds integer not null,            -- how long a reservation may be paid
  max_waiting integer,                      -- null: the line has no limit
  late_payment flashsale_data.late_payment not null default 'refund',
  paused boolean not null default false,
  opens_at timestamptz,                     -- null: it has always been open
  closes_at timestamptz,                    -- null: it never closes
  line regclass not null,                   -- the sequence that hands out this item's tickets
  created_at timestamptz not null,
  constraint items_pkey primary key (item_id),
  constraint items_ids_are_below_those_of_payments check (item_id < 134217728), -- see payments
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
