create function flashsale.finish_notifications(p_job_ids bigint[], p_tries integer[])
returns setof bigint
language sql volatile security definer set search_path = '' set enable_seqscan = off
as $$
  delete from pgmq.q_notifications q
  using unnest(p_job_ids, p_tries) j (job_id, tries)
  where q.msg_id = j.job_id and q.read_ct = j.tries
  returning q.msg_id
$$;

comment on function flashsale.finish_notifications(bigint[], integer[]) is
$$Acknowledges e-mails that were sent; returns whose lease was ours
The leases of the others have gone to somebody else. The arrays go together: job_id, tries.$$;
