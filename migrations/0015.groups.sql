-- Orders for more than one unit, and limits per customer.
--
-- A big table gets its new columns and indexes from `flashsale migrate` before this migration runs,
-- while the sale goes on (flashsale.database.indexes). Here they are made for an empty database, or
-- for one that is migrated in another way.
alter table flashsale_data.orders
  add column if not exists quantity integer,           -- units asked for; null: 1
  add column if not exists min_quantity integer,       -- fewer are of no use; null: all
  add column if not exists units integer,              -- units granted, once it holds any; null: 1
  add column if not exists head_id bigint,             -- of a part: its order; null: an order
  add column if not exists product_id integer,         -- null: its item counts alone
  add column if not exists may_buy_again boolean,      -- paid, and a later request was let past it
  add column if not exists part_served_at timestamptz; -- when its first ticket was served

-- A customer has at most one order in this index per product: the open one, or else the last paid
-- one. A request that finds a paid order there counts what its customer has paid. If the limit
-- leaves room, it marks that order (may_buy_again), which so leaves the index.
create unique index if not exists orders_one_open_per_customer
  on flashsale_data.orders (coalesce(product_id, item_id), customer_id)
  where ended_at is null and may_buy_again is null;

create index if not exists orders_head_id on flashsale_data.orders (head_id)
  where head_id is not null;

-- A call that is under way with the old functions needs the old index. So it goes at once only if
-- there are no orders. Else migrate drops it when these calls have ended.
do $$
begin
  if not exists (select from flashsale_data.orders) then
    drop index flashsale_data.orders_one_live_per_customer;
  end if;
end
$$;

-- check_terms has the limits of these. CHECKs for them would make each promotion slower.
alter table flashsale_data.items
  add column max_per_order integer not null default 1,
  add column max_per_customer integer,            -- null: as max_per_order
  add column product text,                        -- items with the same product share a limit
  add column product_id integer,                  -- the item_id of the product's first item
  -- Whether requests have to count: it has a product, or has had a limit above 1.
  add column counts_units boolean not null default false,
  add column highest_limit integer not null default 1; -- of max_per_customer, ever

-- The items of a product. Its first item gives it the id. The primary key decides between two items
-- that are created at once.
create table flashsale_data.products (
  product text not null,
  product_id integer not null,
  constraint products_pkey primary key (product)
);

-- What was asked with a key. Of a key from before this migration nothing is known.
alter table flashsale_data.order_keys
  add column quantity integer,     -- null: 1
  add column min_quantity integer, -- null: as quantity
  add column wait boolean;         -- null: not known

-- The tickets of one order for several units.
create type flashsale_data.group_tickets as (
  head_id bigint,
  tickets integer[], -- the first one is the head's
  quantity integer,
  min_quantity integer,
  now_serving integer -- of the item, as the request has seen it
);

-- What is known of a request that look_up does not decide (look_up_special).
create type flashsale_data.special_request as (
  outcome text,      -- as of look_up
  order_id bigint,   -- the same
  in_the_way boolean -- the order is paid, and leaves room for the request
);

alter type flashsale.order_row add attribute quantity integer;
alter type flashsale.order_row add attribute units integer;
