-- Jobs that were given up, because they were tried too often or name nothing that exists here.
create table flashsale_data.dead_letters (
  dead_letter_id bigint generated always as identity,
  queue text not null,      -- payments or notifications
  message jsonb not null,
  tries integer not null,   -- how often it was taken
  error text,               -- of the last try
  enqueued_at timestamptz not null,
  died_at timestamptz not null,
  constraint dead_letters_pkey primary key (dead_letter_id)
);
