-- Sweeping one item per transaction, and finding out what is in the way of it.

-- A publication for all tables, which change-data-capture tools make, forbids to delete rows of a
-- table that has neither a key nor a replica identity. Sweeps delete tallies. An index would cost
-- every payment something; this costs only the log of the deletion.
alter table flashsale_data.tallies replica identity full;

-- The name of a runner is no longer unique here. The first sweep of a name inserts its row; with a
-- unique key, another first sweep of that name would wait for its transaction to end.
alter table flashsale_data.sweepers drop constraint sweepers_pkey;
alter table flashsale_data.sweepers
  add column sweeper_id bigint generated always as identity,
  add column failures bigint not null default 0, -- visits to an item that ended with an error
  add constraint sweepers_pkey primary key (sweeper_id);

create index sweepers_runner on flashsale_data.sweepers (runner);

-- Items whose sweep fails. A row is deleted when the item's sweep succeeds. A runner's name and the
-- item are not unique, for the same reason.
create table flashsale_data.sweep_failures (
  sweep_failure_id bigint generated always as identity,
  item_id integer not null,
  runner text not null,
  failures integer not null,      -- how often in a row
  error text not null,            -- the last one
  since timestamptz not null,
  failed_at timestamptz not null, -- the last time
  retry_at timestamptz not null,  -- sweeps leave the item out until then
  constraint sweep_failures_pkey primary key (sweep_failure_id)
);

create index sweep_failures_item_id on flashsale_data.sweep_failures (item_id);

-- When noted_ticket and noted_xid were noted, so that people see how long filling has been waiting.
alter table flashsale_data.items add column noted_at timestamptz;

comment on column flashsale_data.items.noted_xid is
  'The id of the transaction that noted noted_ticket: see sql/fill.sql.';

-- What there is to do for an item, as a sweep has found it.
create type flashsale_data.due_item as (
  item_id integer,
  last_ticket integer,  -- its line's last ticket, if that was read before the transaction had an id
  overdue_ids bigint[]  -- its holds that are past their deadlines
);
