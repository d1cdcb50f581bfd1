-- One row per runner (a process that sweeps): when it swept last, what it did, and how far it has
-- come in its search for holes, which goes through all items in turn.
create table flashsale_data.sweepers (
  runner text not null,
  swept_at timestamptz not null,
  sweeps bigint not null default 0,
  expired bigint not null default 0,
  promoted bigint not null default 0,
  last_examined_item_id integer not null default 0, -- the next sweep looks for holes after it
  constraint sweepers_pkey primary key (runner)
) with (fillfactor = 50);
