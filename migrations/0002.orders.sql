-- Orders: one row per ticket. The identity of an order is its place in its item's line, so one
-- unique key serves as the order's id, as the guard of (item, ticket) and as the line's index.
create type flashsale_data.order_status as enum (
  'waiting',   -- -> reserved (promote), cancelled (cancel), unserved (the sale closed)
  'reserved',  -- -> paid (pay), expired (expire), cancelled (cancel)
  'paid',      -- final
  'expired',   -- final; its ticket is recycled
  'cancelled', -- final; its ticket is recycled once the line has passed it
  'unserved',  -- final; its ticket is recycled if the line ever passes it
  'void'       -- final; a ticket that nobody holds: a hole, or withdrawn from sale
);

-- There is no foreign key to items. It would lock the item's row for every order, which is the one
-- thing that the ticket line avoids. Items are never deleted, and flashsale.violation looks for
-- orders without an item.
--
-- order_id is flashsale.order_id_of(item_id, ticket). It is not a generated column, because
-- Postgres reads a generated column's expression anew for each statement, which was a tenth of an
-- INSERT. flashsale.violation looks for orders whose id is another.
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
  -- Few and short ones only: Postgres reads CHECKs anew for each statement, and with eight of them
  -- half of a single INSERT went there. flashsale.violation looks for the rest.
  constraint orders_paid_before_the_deadline check (paid_at < expires_at),
  constraint orders_paid_orders_have_been_paid check ((status = 'paid') = (paid_at is not null)),
  constraint orders_live_orders_have_not_ended check (
    (status in ('waiting', 'reserved', 'paid')) = (ended_at is null))
) with (
  -- The table of a storm: vacuum by the number of changes, not by a share of a growing table.
  autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 50000,
  autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 200000,
  autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 50000
);

create index orders_customer_id_created_at on flashsale_data.orders (customer_id, created_at)
  where customer_id is not null;

-- What a sweep looks for; each index holds only the rows that still want something.
create index orders_order_id_waiting on flashsale_data.orders (order_id)
  where status = 'waiting';

create index orders_order_id_unrecycled on flashsale_data.orders (order_id)
  where ended_at is not null and not recycled;

-- A customer who asks again finds the order that they have: there is at most one that is not over.
-- (This index comes after that of customers: of two that cost the same, a plan takes the later.)
--
-- This index and that of holds are told by columns which only their own queries name, and not by
-- status. A plan that was made while nobody held anything took such an index, empty then, for
-- whatever question named the status: pay looked through all live orders for its own.
-- (ended_at is null means waiting, reserved or paid, by a CHECK.)
create unique index orders_one_live_per_customer
  on flashsale_data.orders (item_id, customer_id)
  where ended_at is null;

-- The holds, for expire.
create index orders_expires_at_held on flashsale_data.orders (expires_at)
  where expires_at is not null and paid_at is null and ended_at is null;

-- Which order answered an Idempotency-Key. The primary key decides between duplicates.
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
