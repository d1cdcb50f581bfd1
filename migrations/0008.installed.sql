-- What `flashsale migrate` has installed from sql/, so that the next one replays only what differs.
create table flashsale_data.installed (
  part text not null,   -- a file of sql/, or `objects`: the functions, the views and their rights
  digest text not null, -- of the file's text, or of the list of objects
  constraint installed_pkey primary key (part)
);
