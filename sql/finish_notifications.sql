create or replace function flashsale.finish_notifications(p_job_ids bigint[], p_tries integer[])
returns setof bigint
language sql volatile security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
  delete from pgmq.q_notifications q
  where q.msg_id = any (p_job_ids) -- an array, since a join may read the whole queue
    and exists (
      select from unnest(p_job_ids, p_tries) j (job_id, tries)
      where j.job_id = q.msg_id and j.tries = q.read_ct)
  returning q.msg_id
$$;

comment on function flashsale.finish_notifications(bigint[], integer[]) is
$$Acknowledges sent e-mails; returns the jobs that were still leased
p_job_ids and p_tries: the leases, in two arrays of one length. Returns the ids of the jobs whose
lease was still the caller's; the others have been taken by another worker.$$;
