-- Orders: one row per ticket. The identity of an order is its place in its item's line, so one
-- unique key serves as the order's id, as the guard of (item, ticket) and as the line's index.
create type flashsale_data.order_status as enum (
  'waiting',   -- -> reserved (promote), cancelled (cancel), unserved (the sale closed)
  'reserved',  -- -> paid (pay), expired (expire), cancelled (cancel)
  'paid',      -- final
  'expired',   -- final; its ticket is recycled
  'cancelled', -- final; its ticket is recycled once the line has passed it
  'unserved',  -- final; its ticket is recycled if the line ever passes it
  'void'       -- final; stands for a ticket without a customer: a hole, or withdrawn from sale
);

-- There is no foreign key to items. It would lock the item's row for every order, which is the one
-- thing that the ticket line avoids. Items are never deleted, and flashsale.violation looks for
-- orders without an item.
--
-- order_id is flashsale.order_id_of(item_id, ticket). It is not a generated column, because
-- Postgres sets up a generated column's expression anew for each statement, which took a tenth of
-- an INSERT. flashsale.violation looks for orders with another id.
create table flashsale_data.orders (
  order_id bigint not null,
  created_at timestamptz not null,
  reserved_at timestamptz,                 -- null: it has never held a unit
  expires_at timestamptz,                  -- the hold's deadline
  paid_at timestamptz,
  ended_at timestamptz,                    -- when it ended without a sale
  item_id integer not null,
  ticket integer not null,
  status flashsale_data.order_status not null,
  recycled boolean not null default false, -- counted into items.forfeited, once
  customer_id text,                        -- null: void
  constraint orders_pkey primary key (order_id),
  -- There are only a few short CHECKs, because Postgres sets them up anew for each statement: eight
  -- of them took half of the time of a single INSERT. flashsale.violation checks the other rules.
  constraint orders_paid_before_the_deadline check (paid_at < expires_at),
  constraint orders_paid_orders_have_been_paid check ((status = 'paid') = (paid_at is not null)),
  constraint orders_live_orders_have_not_ended check (
    (status in ('waiting', 'reserved', 'paid')) = (ended_at is null))
) with (
  -- A storm changes many rows of this table, which only grows. So vacuum is due after a number of
  -- changes, and not after a share of the table.
  autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 50000,
  autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 200000,
  autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 50000
);

create index orders_customer_id_created_at on flashsale_data.orders (customer_id, created_at)
  where customer_id is not null;

-- The indexes of sweeps. Each holds only the rows that a sweep still has to deal with.
create index orders_order_id_waiting on flashsale_data.orders (order_id)
  where status = 'waiting';

create index orders_order_id_unrecycled on flashsale_data.orders (order_id)
  where ended_at is not null and not recycled;

-- A customer has at most one live order per item, and a repeated request finds it by this index.
-- (The index is created after that of customers: of two with the same cost, a plan takes the later
-- one.)
--
-- The predicates of this index and of the index of holds name columns which only their own queries
-- name, and not the status. A plan that was made while there were no holds took an index on the
-- status, which was empty then, for every query that named the status. So pay read all live orders
-- to find its own. (By a CHECK, an order whose ended_at is null is waiting, reserved or paid.)
create unique index orders_one_live_per_customer
  on flashsale_data.orders (item_id, customer_id)
  where ended_at is null;

-- The index of holds, for expire.
create index orders_expires_at_held on flashsale_data.orders (expires_at)
  where expires_at is not null and paid_at is null and ended_at is null;

-- The order that answered each Idempotency-Key. The primary key decides between duplicates.
create table flashsale_data.order_keys (
  customer_id text not null,
  item_id integer not null,
  idempotency_key text not null,
  order_id bigint not null,
  constraint order_keys_pkey primary key (customer_id, item_id, idempotency_key),
  constraint order_keys_key_is_short check (length(idempotency_key) between 1 and 255)
);

-- Changes of an item's counters on their way into its row: pay and cancel only append here, and
-- sweeps add them to items. There is no index, because the table is read whole and nearly empty.
create table flashsale_data.tallies (
  item_id integer not null,
  paid integer not null,
  gaps_in_line integer not null
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
