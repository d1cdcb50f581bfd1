-- These are changed by the next migration. They are locked here, all at once and right after the
-- views, which migrate has locked. At each moment in between, a transaction may lock one of them
-- and then wait for another.
lock table flashsale_data.items, flashsale_data.tallies, flashsale_data.sweepers
  in access exclusive mode;

-- What `flashsale migrate` has installed from sql/, so that the next one replays only what differs.
create table flashsale_data.installed (
  part text not null,   -- a file of sql/, or `objects`: the functions, the views and their rights
  digest text not null, -- of the file's text, or of the list of objects
  constraint installed_pkey primary key (part)
);
