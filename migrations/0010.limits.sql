-- Times of a sale are in the years 2000 to 2999, for every way into the table. Python knows no
-- years beyond 9999, and a sale that opens at infinity can't be told from one that never opens.
-- What lies outside already gets the nearest meaning: it has always been open, it never closes.
update flashsale_data.items i
set
  opens_at = case
    when i.opens_at >= '3000-01-01 00:00Z' then '2999-12-31 00:00Z'
    when i.opens_at >= '2000-01-01 00:00Z' then i.opens_at
  end,
  closes_at = case
    when i.closes_at < '2000-01-01 00:00Z' then '2000-01-01 00:00Z'
    when i.closes_at < '3000-01-01 00:00Z' then i.closes_at
  end
where i.opens_at < '2000-01-01 00:00Z' or i.opens_at >= '3000-01-01 00:00Z'
  or i.closes_at < '2000-01-01 00:00Z' or i.closes_at >= '3000-01-01 00:00Z';

alter table flashsale_data.items
  add constraint items_opens_at_is_in_range check (
    opens_at >= '2000-01-01 00:00Z' and opens_at < '3000-01-01 00:00Z'),
  add constraint items_closes_at_is_in_range check (
    closes_at >= '2000-01-01 00:00Z' and closes_at < '3000-01-01 00:00Z');

-- Tickets that operators have withdrawn from sale. They have no orders: a range of them is one row,
-- however many they are. Each is counted into items.forfeited when it is withdrawn.
create table flashsale_data.withdrawn_tickets (
  item_id integer not null,
  first_ticket integer not null,
  last_ticket integer not null,
  withdrawn_at timestamptz not null,
  constraint withdrawn_tickets_pkey primary key (item_id, first_ticket),
  constraint withdrawn_tickets_first_is_not_after_last check (
    first_ticket between 1 and last_ticket)
);
