-- Told by columns that only their own queries name, not by status. A plan made while nobody held
-- anything took one of these, empty then, for whatever question named a status: pay looked through
-- all live orders for its own. (ended_at is null: waiting, reserved or paid, by a CHECK.)
drop index flashsale_data.orders_one_live_per_customer;

create unique index orders_one_live_per_customer
  on flashsale_data.orders (item_id, customer_id)
  where ended_at is null;

drop index flashsale_data.orders_expires_at_reserved;

create index orders_expires_at_held on flashsale_data.orders (expires_at)
  where expires_at is not null and paid_at is null and ended_at is null;
