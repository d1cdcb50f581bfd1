-- The feed: everything that happened, in one order, for programs of others. sql/publish_events.sql
-- explains how a change gets from the outbox to its number.

-- What happened and has no number yet. Verbs append here, in the transaction of the change.
create table flashsale_data.outbox (
  xid xid8 not null default pg_current_xact_id(), -- by it the publisher finds what is new to it
  outbox_id bigint generated always as identity,
  type text not null,
  item_id integer,        -- null: that of the order
  order_id bigint,        -- null: it happened to an item
  at timestamptz not null,
  data jsonb,             -- null: nothing beside the above
  constraint outbox_pkey primary key (xid, outbox_id)
) with (
  -- Each row is deleted when it is published. Nothing reads the rows that are dead, so vacuum may
  -- come late; but it must come during a storm.
  autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
  autovacuum_vacuum_insert_threshold = -1, autovacuum_analyze_threshold = 1000000
);

-- What happened, with its number. Only the publisher inserts.
create table flashsale_data.events (
  event_id bigint not null,
  item_id integer not null,
  order_id bigint,
  at timestamptz not null,
  type text not null,
  data jsonb,
  constraint events_pkey primary key (event_id)
) with (
  autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 50000,
  autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 200000,
  autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 100000
);

-- What the publisher remembers: one row. Its lock makes one publisher at a time.
create table flashsale_data.feed (
  one_row boolean not null default true,
  last_event_id bigint not null default 0,
  forgotten_through bigint not null default 0,  -- events up to here have been deleted
  seen_xmax xid8 not null default '0',          -- rows of transactions from this one on are new
  unseen xid8[] not null default '{}',          -- ... and so are those of these older ones
  branch text,                                  -- the history that the above is true in
  last_examined_item_id integer not null default 0, -- the next visit looks for new orders after it
  constraint feed_pkey primary key (one_row),
  constraint feed_is_one_row check (one_row)
) with (fillfactor = 10);

insert into flashsale_data.feed default values;

-- How far the orders of each item have been announced: the event of a new order is written by the
-- publisher, because reserve writes none.
create table flashsale_data.feed_lines (
  item_id integer not null,
  announced integer not null default 0,         -- all tickets up to this one are announced, except
  gaps int4multirange not null default '{}',    -- ... these, whose orders may still be committed
  constraint feed_lines_pkey primary key (item_id)
) with (fillfactor = 50);

-- Orders of before are not announced: the feed begins here.
insert into flashsale_data.feed_lines (item_id, announced)
select i.item_id, i.settled from flashsale_data.items i;

create type flashsale.event_row as (
  event_id bigint,
  type text,
  at timestamptz,
  item_id integer,
  order_id bigint,
  data jsonb
);
