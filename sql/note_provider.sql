-- Whether the payment provider is down. The worker's circuit breaker knows, and says so each
-- second. What a worker has said is true for ten seconds, so that a worker that dies stops nothing.
--
-- outage has no settings, so that it is inlined: a call of provider_down would make each promotion
-- some percent slower.
create or replace function flashsale.outage() returns table (down_since timestamptz)
language sql stable
as $$
  select s.down_since
  from flashsale_data.provider_status s
  where s.one_row
    and s.down_since is not null
    and s.noted_at between
      flashsale.clock() - interval '10 seconds' and flashsale.clock() + interval '10 seconds'
$$;

comment on function flashsale.outage() is
$$Since when the payment provider is down; no row: it is not$$;

create or replace function flashsale.provider_down() returns boolean
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$ select exists (select from flashsale.outage()) $$;

comment on function flashsale.provider_down() is
$$Whether a worker has said in the last ten seconds that nobody can pay$$;

create or replace function flashsale.is_after_outage(p_now timestamptz) returns boolean
language sql stable set search_path = pg_catalog, pg_temp
as $$
  select exists (
    select from flashsale_data.provider_status s
    where s.one_row and (s.down_since is not null or s.noted_at > p_now - interval '10 seconds'))
$$;

comment on function flashsale.is_after_outage(timestamptz) is
$$Whether the provider was down until now, or a backlog from then goes on$$;

-- An outage leaves a backlog of sessions to open. A hold that begins after the provider's return
-- may come due before the worker has got to its session, and then it is the outage that costs it.
-- So while a worker is behind, it says again that the provider is back, and each time prolongs what
-- hold_fates calls an outage. This works only for a backlog that follows an outage: without the
-- limit of ten seconds, a hold without a session would come back for ever whenever there is a rush.
--
-- What is learned about the provider counts for holds that still run. Those that are over have been
-- read already as what they were then, expired for example, if no worker was alive to notice the
-- outage. So they are ended first.
create or replace function flashsale.note_provider(p_is_down boolean) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz;
begin
  if p_is_down then
    perform flashsale.expire(); -- by what was known until now
  elsif flashsale.is_after_outage(flashsale.clock()) then
    perform flashsale.expire(1000); -- a step: the lines move while this goes on
  end if;
  v_now := flashsale.clock();
  if p_is_down then
    insert into flashsale_data.provider_status as s (down_since, noted_at)
    values (v_now, v_now)
    on conflict (one_row) do update
    set
      down_since = case when flashsale.provider_down() then s.down_since else v_now end,
      noted_at = v_now
    -- Another worker may have noticed the return since this one's last failure.
    where s.down_since is not null
      or s.noted_at not between v_now - interval '2 seconds' and v_now;
  else
    update flashsale_data.provider_status s
    set down_since = null, noted_at = v_now -- until now there was somebody who could not pay
    where s.one_row and flashsale.is_after_outage(v_now);
  end if;
end
$$;

comment on function flashsale.note_provider(boolean) is
$$Records that the payment provider is down, or that it is back
p_is_down true: to be said again each second, because it counts for ten. It has no effect within two
seconds after somebody said that the provider is back. While it is down, nobody is promoted, and a
hold that comes due without a session goes back to the line. false: to be said once, and again each
second while there are more sessions to open than can be opened at once: until then, too, a hold
that comes due without a session goes back to the line. Holds that are over are ended first, so that
this changes nothing for them: at most 10,000, or 1,000 if the provider is back, and none that
somebody has locked. Sweeps, which run each second, end the others.$$;
