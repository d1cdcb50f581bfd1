-- Forgetting a customer. Orders and payments are kept for the books, without the customer: they get
-- a pseudonym, the same for all of them, which nobody can compute from the customer's id. What is
-- not needed for the books is deleted.
--
-- A request of the same customer may run at the same moment. All of their orders are locked first.
-- So an order that is inserted meanwhile is not among those that are forgotten, with all that
-- belongs to it: it is the first order of a new customer. A new key for an order that they had
-- may be inserted meanwhile, and leads to what nobody may find: another call deletes it, and so
-- does purge.
create or replace function flashsale.is_forgotten(p_customer_id text) returns boolean
language sql immutable parallel safe
as $$ select p_customer_id collate "C" ~ '^forgotten-[0-9a-f-]+$' and length(p_customer_id) = 46 $$;

comment on function flashsale.is_forgotten(text) is
$$Whether this is the pseudonym of a forgotten customer$$;

create or replace function flashsale.forget_customer(
  p_customer_id text,
  p_reason text,
  p_staff text default null,
  out pseudonym text,
  out orders integer)
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_order_ids bigint[];
  v_open text[];
begin
  perform flashsale.check_act(p_staff, p_reason);
  if (length(p_customer_id) between 1 and 128) is not true then -- as earlier versions took them
    raise exception 'This is not a customer.' using
      errcode = 'RV302', constraint = 'bad_value', hint = 'Pass the id of a customer.';
  end if;
  v_order_ids := array(
    select o.order_id from flashsale_data.orders o
    where o.customer_id = p_customer_id and not flashsale.is_forgotten(p_customer_id)
    order by o.item_id, o.customer_id
    for update);
  v_open := array(select w.what from flashsale.open_of(v_order_ids) w order by w.order_id);
  if v_open <> '{}' then
    perform flashsale.raise_still_open(v_open);
  end if;
  delete from flashsale_data.order_keys k -- see above
  where k.customer_id = p_customer_id and not exists (
    select from flashsale_data.orders o
    where o.order_id = flashsale.current_id(k.order_id) and o.customer_id = p_customer_id);
  orders := cardinality(v_order_ids);
  if orders > 0 then
    pseudonym := 'forgotten-' || gen_random_uuid();
    perform flashsale.put_pseudonym(p_customer_id, pseudonym, v_order_ids);
    perform flashsale.note_history(
      coalesce(p_staff, session_user), 'forget_customer', null, null,
      jsonb_build_object('pseudonym', pseudonym, 'orders', orders),
      flashsale.without_name(p_reason, p_customer_id, pseudonym));
  end if;
end
$$;

comment on function flashsale.forget_customer(text, text, text) is
$$Puts a pseudonym in the place of a customer, in all that is kept
p_customer_id: the customer. p_reason: why, for history, 1 to 1,000 characters. p_staff: who, for
history, 1 to 128 characters; null: the login. Orders and payments stay, with the pseudonym that is
returned; idempotency keys, links of checkouts and undeliverable e-mails are deleted. If the same
customer comes back, they are a new customer, whose limit starts anew. orders: how many orders had
the customer; 0 if the customer is not known, or has been forgotten already.
Waits for transactions that are changing orders of this customer.
Errors: RV212 something is open (detail lists it), RV302 not a customer, a reason or a name.$$;

create or replace function flashsale.put_pseudonym(
  p_customer_id text, p_pseudonym text, p_order_ids bigint[])
returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_sessions text[];
begin
  delete from flashsale_data.order_keys k
  where k.customer_id = p_customer_id
    and flashsale.current_id(k.order_id) = any (p_order_ids);
  delete from flashsale_data.request_keys k where k.scope = p_customer_id;
  update flashsale_data.orders o
  set customer_id = p_pseudonym
  where o.order_id = any (p_order_ids) and o.customer_id = p_customer_id;
  with paid as (
    update flashsale_data.payments p
    set checkout_url = null
    where p.order_id = any (p_order_ids)
    returning p.session_id
  )
  select array_agg(p.session_id) into v_sessions from paid p;
  update flashsale_data.payment_events e
  set payload = null
  where e.payload is not null
    and (e.session_id = any (v_sessions) or strpos(e.payload, p_customer_id) > 0);
  perform flashsale.without_dead_mail(p_order_ids);
  update flashsale_data.history h
  set
    reason = flashsale.without_name(h.reason, p_customer_id, p_pseudonym),
    before = flashsale.without_name_in(h.before, p_customer_id, p_pseudonym),
    after = flashsale.without_name_in(h.after, p_customer_id, p_pseudonym)
  where strpos(concat(h.reason, h.before, h.after), p_customer_id) > 0
    or flashsale.current_id(h.order_id) = any (p_order_ids);
end
$$;

comment on function flashsale.put_pseudonym(text, text, bigint[]) is
$$Puts the pseudonym in the place of a customer; see forget_customer
The caller has locked the orders. A table that names customers belongs here:
tests/test_forget_customer.py looks for those that are missing.$$;

create or replace function flashsale.without_name(p_text text, p_name text, p_pseudonym text)
returns text
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select regexp_replace(
    p_text,
    '(?<![[:alnum:]])' || regexp_replace(p_name, '([^[:alnum:]])', '\\\1', 'g')
      || '(?![[:alnum:]])',
    p_pseudonym, 'g')
$$;

comment on function flashsale.without_name(text, text, text) is
$$A text, with a pseudonym where it has the name as a word of its own$$;

create or replace function flashsale.without_name_in(p_facts jsonb, p_name text, p_pseudonym text)
returns jsonb
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select replace(
    p_facts::text, to_jsonb(p_name)::text, to_jsonb(p_pseudonym)::text)::jsonb
$$;

comment on function flashsale.without_name_in(jsonb, text, text) is
$$Facts, with a pseudonym where one of their texts is the name$$;
