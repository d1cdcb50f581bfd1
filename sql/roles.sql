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

-- Limits, for logins that are one of these roles: its members do not inherit them. A limit that was
-- set already stays as it is.
do $$
declare
  v_role record;
begin
  for v_role in
    select r.rolname, l.*
    from (values
      ('flashsale_api', 250, '10s', '10s'),
      ('flashsale_worker', 50, '10s', '10s'),
      ('flashsale_tool', 50, '10s', '10s'),
      ('flashsale_operator', 20, '5min', '1min')
    ) l (name, connections, statement, idle)
    join pg_roles r on r.rolname = l.name
    where r.rolconnlimit = -1 and r.rolconfig is null
  loop
    begin
      execute format('alter role %I connection limit %s', v_role.rolname, v_role.connections);
      execute format('alter role %I set statement_timeout = %L', v_role.rolname, v_role.statement);
      execute format('alter role %I set idle_in_transaction_session_timeout = %L',
        v_role.rolname, v_role.idle);
    exception
      when insufficient_privilege then null; -- the migrate of another database has made the role
      when internal_error or unique_violation then null; -- another migrate sets them right now
    end;
  end loop;
end
$$;
