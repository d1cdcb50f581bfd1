-- pgmq's queues: payment jobs and simulated e-mail. Installed by the migrator before this runs.
do $$
begin
  perform pgmq.create('payments');
  perform pgmq.create('notifications');
end
$$;
