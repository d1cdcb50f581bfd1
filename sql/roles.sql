-- The roles, one per audience. Roles belong to the cluster, so they may exist already, made by the
-- migrate of another database.
do $$
declare
  v_role text;
  -- From PostgreSQL 16 on, the creator of a role becomes its member without the right to act as it.
  v_right constant text :=
    case when current_setting('server_version_num')::integer >= 160000 then 'set' else 'member' end;
begin
  foreach v_role in array array['api', 'worker', 'tool', 'operator'] loop
    if not exists (select from pg_roles r where r.rolname = 'flashsale_' || v_role) then
      begin
        execute format('create role %I nologin', 'flashsale_' || v_role);
      exception
        when duplicate_object or unique_violation then null; -- another migrate made it just now
      end;
    end if;
    -- The owner may act as each of them, so that one login is enough to run everything.
    if not pg_has_role(current_user, ('flashsale_' || v_role)::name, v_right) then
      begin
        execute format('grant %I to %I', 'flashsale_' || v_role, current_user);
      exception
        when insufficient_privilege then
          raise notice 'role flashsale_% exists and % may not act as it', v_role, current_user;
        when internal_error then null; -- "tuple concurrently updated": another migrate grants it
      end;
    end if;
  end loop;
end
$$;
