-- Erasing what is not needed any more, and one rule for a value at every door.

-- A time of a sale as an argument of a verb: sql/moments.sql says why it is not a timestamptz.
create type flashsale.moment as (at timestamptz);
