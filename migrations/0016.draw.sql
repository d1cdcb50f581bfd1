-- The draw: the customers who come before an item opens are entered, and shuffled when it opens.
--
-- The type order_status has the value entered already: a value can't be used in the transaction
-- that adds it, so `flashsale migrate` adds it before (flashsale.database.migrate).
create type flashsale_data.draw_state as enum (
  'entering',  -- -> listing (the item opens), called_off (the sale closes before that)
  'listing',   -- no more entries: the list is being closed; -> drawing
  'drawing',   -- the tickets 1 to n are taken, and are being given out; -> drawn
  'drawn',     -- final; the secret is public
  'called_off' -- final; the sale closed before it opened
);

-- The CHECKs hold for rows that are written from now on (not valid), so that no order is read.
alter table flashsale_data.orders drop constraint orders_live_orders_have_not_ended;
alter table flashsale_data.orders
  add constraint orders_live_orders_have_not_ended check (
    (status = any ('{entered,waiting,reserved,settling,paid}')) = (ended_at is null)) not valid;

alter table flashsale_data.items
  add column draw flashsale_data.draw_state; -- null: there is none

alter table flashsale_data.tallies
  add column entered integer not null default 0;

-- An entry is an order whose number in the line is above all tickets, until it is drawn. All draws
-- share this sequence. If it ever begins anew, nobody has an entry with an old number any more.
create sequence flashsale_data.entry_numbers as integer
  minvalue 2000000001 maxvalue 2147483647 cycle cache 1;

-- One row per item with a draw. Nobody may see the secret before the draw is done. So it is never
-- in a variable or an argument, which a log could show, and no CHECK of this table can fail.
create table flashsale_data.draws (
  item_id integer not null,
  secret bytea not null,     -- 32 random bytes
  commitment bytea not null, -- their sha256, public from the beginning
  entered integer not null default 0, -- entries, without those still in tallies; until listed
  list_hash bytea,           -- of the entries in the list so far: see flashsale.list_entries
  entries integer not null default 0, -- in the list
  units integer not null default 0,   -- that they ask for: as many tickets are taken
  -- An id given out after the entries ended: see flashsale.entries_are_in.
  noted_xid xid8,
  noted_at timestamptz,               -- for people
  listed_through bigint,              -- the last entry in the list; null: none yet
  listed_at timestamptz,              -- when the list was complete
  hashed_through bigint,              -- the last entry that has its hash
  placed_through bytea,               -- the last hash that has its ticket
  placed_units integer not null default 0,  -- tickets given out
  put_off integer not null default 0, -- entries that were locked when they were to be moved
  done_at timestamptz,                -- when it was drawn, and the secret public; or called off
  constraint draws_pkey primary key (item_id)
) with (fillfactor = 50); -- sweeps update it in place (HOT)

create index draws_item_id_not_done on flashsale_data.draws (item_id) where done_at is null;

-- The list of entries, which stays: it leads from an entry to its order.
create table flashsale_data.drawn_entries (
  entry_id bigint not null,
  order_id bigint,           -- with its ticket; null: not yet
  quantity integer not null, -- units, and so tickets
  constraint drawn_entries_pkey primary key (entry_id)
);

create unique index drawn_entries_order_id on flashsale_data.drawn_entries (order_id);

-- The order of the draw while it is going on. A row is deleted when its order has its ticket.
create table flashsale_data.draw_hashes (
  item_id integer not null,
  hash bytea not null,
  entry_id bigint not null,
  quantity integer not null,
  ticket integer,            -- of an entry that could not be moved, because it was locked
  constraint draw_hashes_pkey primary key (item_id, hash)
);

-- The item's terms if its draw was due, read before this transaction had an id; else null.
alter type flashsale_data.due_item add attribute draw_terms text;

-- What a draw shows to everybody, and its entries.
create type flashsale.draw_row as (
  item_id integer,
  state text,
  entries integer,
  units integer,
  commitment text,
  list_hash text,
  secret text,
  opens_at timestamptz,
  listed_at timestamptz,
  drawn_at timestamptz
);

create type flashsale.draw_entry as (
  entry_id bigint,
  quantity integer,
  ticket integer
);
