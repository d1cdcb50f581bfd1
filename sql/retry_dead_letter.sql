create or replace function flashsale.retry_dead_letter(p_dead_letter_id bigint) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_letter flashsale_data.dead_letters;
begin
  delete from flashsale_data.dead_letters d
  where d.dead_letter_id = p_dead_letter_id
  returning * into v_letter;
  if not found then
    raise exception 'There is no such dead letter.' using
      errcode = 'RV103', constraint = 'unknown_dead_letter',
      detail = format('dead_letter_id %s', p_dead_letter_id),
      hint = 'The view flashsale.dead_letter lists them.';
  end if;
  return (select s.msg_id from pgmq.send(v_letter.queue, v_letter.message) s (msg_id));
end
$$;

comment on function flashsale.retry_dead_letter(bigint) is
$$Puts a dead letter back into its queue; returns the new job's id
A job that was to open a session for a payment that has failed since will be dropped: the customer
has to request another attempt. Errors: RV103 no such dead letter.$$;
