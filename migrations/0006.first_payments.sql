-- A hold asks for its money by its job alone; the first attempt gets a row when the worker takes
-- the job, and has the order's id. Further attempts, and money that names no order, are numbered
-- from 2^59 on: after every order's id, so that the latest attempt has the largest id.
alter table flashsale_data.payments
  alter column payment_id set start with 576460752303423488 restart;

alter table flashsale_data.items
  add constraint items_ids_are_below_those_of_payments check (item_id < 134217728);

-- Postgres reads a generated column's expression anew for each statement, a tenth of an INSERT.
-- flashsale.violation looks for the order whose id is not its place in the line.
alter table flashsale_data.orders alter column order_id drop expression;
