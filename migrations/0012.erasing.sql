-- Erasing what is not needed any more, and one rule for a value at every door.

-- A time of a sale as an argument of a verb: sql/moments.sql says why it is not a timestamptz.
create type flashsale.moment as (at timestamptz);

-- Items that are being deleted: their rows in items are gone, so nobody sees or sells them any
-- more, and their orders are erased a number at a time (flashsale.delete_item).
create table flashsale_data.deleting_items (
  item_id integer not null,
  line regclass not null, -- its sequence, which goes last
  began_at timestamptz not null,
  constraint deleting_items_pkey primary key (item_id)
);

-- For how long what only grows is kept, and how far the walk through it has come that deletes what
-- is older (flashsale.purge). sql/purge.sql inserts the rows.
create table flashsale_data.retention (
  kind text not null,
  days integer,              -- null: for ever
  next_at timestamptz not null default '2000-01-01 00:00Z', -- when the next walk begins
  walked_to text[],          -- the key of the row that the walk has come to; null: it begins
  constraint retention_pkey primary key (kind),
  constraint retention_days_are_in_range check (days between 1 and 36500)
) with (fillfactor = 50);
