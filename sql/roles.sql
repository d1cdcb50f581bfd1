-- Roles by audience. They belong to the cluster, so another database's migrate may make them first.
do $$
declare
  v_role text;
begin
  foreach v_role in array array['api', 'worker', 'tool', 'operator'] loop
    begin
      execute format('create role %I nologin', 'flashsale_' || v_role);
    exception
      when duplicate_object or unique_violation then null; -- made before, or this very moment
    end;
    -- The owner may act as each of them: one login is enough to run everything.
    if not pg_has_role(current_user, ('flashsale_' || v_role)::name, 'member') then
      begin
        execute format('grant %I to %I', 'flashsale_' || v_role, current_user);
      exception
        when insufficient_privilege then
          raise notice 'role flashsale_% exists and % may not act as it', v_role, current_user;
        when internal_error then null; -- "tuple concurrently updated": granted this very moment
      end;
    end if;
  end loop;
end
$$;
