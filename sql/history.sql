-- What staff have done: when, who, what, before and after, and why.
create or replace view flashsale.history as
select
  h.history_id, h.at, h.staff, h.action, h.item_id, h.order_id, h.before, h.after, h.reason
from flashsale_data.history h;

comment on view flashsale.history is
$$What staff have done, and what was done at the payment provider$$;

comment on column flashsale.history.history_id is 'In the order in which it was noted.';
comment on column flashsale.history.at is 'When.';
comment on column flashsale.history.staff is
  'Who, as the caller named them, or else the login; null: somebody at the payment provider.';
comment on column flashsale.history.action is
  'The verb that did it, such as restock or refund_order; or refund_at_provider.';
comment on column flashsale.history.item_id is 'The item, if it is about one.';
comment on column flashsale.history.order_id is 'The order, if it is about one.';
comment on column flashsale.history.before is
  'What it was like before; of an item, only the terms that have changed.';
comment on column flashsale.history.after is
  'What it was like after that; of an item, only the terms that have changed.';
comment on column flashsale.history.reason is 'Why, in the words of the staff.';

create or replace function flashsale.note_history(
  p_staff text,
  p_action text,
  p_order_id bigint,
  p_before jsonb,
  p_after jsonb,
  p_reason text,
  p_item_id integer default null)
returns void
language sql volatile set search_path = pg_catalog, pg_temp
as $$
  insert into flashsale_data.history (
    at, staff, action, item_id, order_id, before, after, reason)
  values (
    flashsale.clock(), p_staff, p_action, coalesce(p_item_id, flashsale.item_of(p_order_id)),
    p_order_id, p_before, p_after, p_reason)
$$;

comment on function flashsale.note_history(text, text, bigint, jsonb, jsonb, text, integer) is
$$Notes what somebody has done
p_item_id: for what is not about an order.$$;

-- What staff can change about an item. Everything but counters and what never changes, so that a
-- term that is added one day is in the history too.
create or replace function flashsale.terms_of(p_item flashsale_data.items) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp set timezone = 'UTC'
as $$
  select to_jsonb(p_item) - array[
    'item_id', 'created_at', 'line', 'forfeited', 'now_serving', 'paid', 'gaps_in_line', 'settled',
    'noted_ticket', 'noted_xid', 'noted_at']
$$;

comment on function flashsale.terms_of(flashsale_data.items) is
$$An item without its counters, for the history$$;

create or replace function flashsale.note_item(
  p_action text, p_item_id integer, p_before flashsale_data.items, p_reason text, p_staff text)
returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  v_before jsonb;
  v_after jsonb;
begin
  select
    jsonb_object_agg(n.key, o.value) filter (where o.key is not null),
    jsonb_object_agg(n.key, n.value)
  into v_before, v_after
  from flashsale_data.items i
  cross join jsonb_each(flashsale.terms_of(i)) n
  left join jsonb_each(flashsale.terms_of(p_before)) o on o.key = n.key
  where i.item_id = p_item_id and n.value is distinct from o.value;
  if v_after is not null then
    perform flashsale.note_history(
      coalesce(p_staff, session_user), p_action, null, v_before, v_after, p_reason, p_item_id);
    insert into flashsale_data.outbox (type, item_id, at, data)
    values (
      case p_action
        when 'create_item' then 'item.created'
        when 'close_item' then 'item.closed'
        else 'item.changed'
      end,
      p_item_id, flashsale.clock(), v_after - '{product_id,counts_units,highest_limit}'::text[]);
  end if;
end
$$;

comment on function flashsale.note_item(text, integer, flashsale_data.items, text, text) is
$$Notes which terms of an item a verb has changed, if any
p_before: the item's row before; null: the item is new. p_staff: null: the login.$$;

create or replace function flashsale.check_act(p_staff text, p_reason text) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
  if (coalesce(flashsale.is_id(p_staff, 128), true)
    and flashsale.is_text(p_reason, 1000)) is not true
  then
    raise exception 'Say why, and who.' using
      errcode = 'RV302', constraint = 'bad_value',
      detail = format('a reason of %s characters, a name of %s',
        coalesce(length(p_reason), 0), coalesce(length(p_staff), 0)),
      hint = 'A reason has 1 to 1000 characters and no control characters; the name of the staff '
        'has 1 to 128 characters of printable ASCII.';
  end if;
end
$$;

comment on function flashsale.check_act(text, text) is
$$Raises RV302 if this can't be noted in history as who and why$$;
