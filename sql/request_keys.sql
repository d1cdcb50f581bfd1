-- Idempotency-Keys of verbs that change something, for all of them in one place. Requests for units
-- have their own (order_keys), because those name an order.
--
-- A verb asks is_repeated before it does anything else. The first caller with a key inserts its row
-- and goes on. Another caller with the same key waits for the first one's transaction, because of
-- the primary key. If that commits, the call is a repeat: it has no effect, and is answered with
-- the state of now. If it rolls back, its row is gone, and the call goes on as the first one. So a
-- call that was refused leaves no key behind, and may be tried again with the same one.
create or replace function flashsale.is_repeated(
  p_scope text, p_key text, p_verb text, p_request jsonb)
returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_fingerprint constant bytea := sha256(convert_to(p_verb || ' ' || p_request::text, 'UTF8'));
  v_is_same boolean;
begin
  if p_key is null then
    return false;
  elsif not flashsale.is_id(p_key, 255) then
    raise exception 'This can''t be an idempotency key.' using
      errcode = 'RV302', constraint = 'bad_value', detail = format('%s characters', length(p_key)),
      hint = 'Idempotency keys have 1 to 255 characters of printable ASCII.';
  end if;
  insert into flashsale_data.request_keys (scope, idempotency_key, fingerprint, created_at)
  values (p_scope, p_key, v_fingerprint, flashsale.clock())
  on conflict do nothing;
  if found then
    return false;
  end if;
  select k.fingerprint = v_fingerprint into v_is_same
  from flashsale_data.request_keys k
  where k.scope = p_scope and k.idempotency_key = p_key;
  if v_is_same is null then -- it was purged at this moment
    raise exception 'This idempotency key has just been forgotten.' using
      errcode = '40001', hint = 'Call again.';
  elsif not v_is_same then
    raise exception 'This idempotency key belongs to another request.' using
      errcode = 'RV304', constraint = 'key_reused', detail = format('key %L', p_key),
      hint = 'Use a new key for a new request, and repeat a request exactly as it was.';
  end if;
  return true;
end
$$;

comment on function flashsale.is_repeated(text, text, text, jsonb) is
$$Whether a call was made before, by its idempotency key
p_scope: the customer who asks; empty: staff and tools. p_key: 1 to 255 characters; null: never a
repeat. p_request: the arguments that the key is bound to. If it is no repeat, the key is recorded:
the caller has its effect in this transaction.
Errors: RV302 a key that is too long, RV304 the key was used for another request, 40001 the key was
purged at this moment: call again.$$;

create or replace function flashsale.note_result(p_scope text, p_key text, p_result bigint)
returns void
language sql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
  update flashsale_data.request_keys k
  set result = p_result
  where k.scope = p_scope and k.idempotency_key = p_key
$$;

comment on function flashsale.note_result(text, text, bigint) is
$$Keeps what a call returned, for repeats with its idempotency key$$;

create or replace function flashsale.noted_result(p_scope text, p_key text) returns bigint
language sql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
  select k.result
  from flashsale_data.request_keys k
  where k.scope = p_scope and k.idempotency_key = p_key
$$;

comment on function flashsale.noted_result(text, text) is
$$What the first call with an idempotency key returned$$;
