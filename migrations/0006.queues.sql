-- pgmq's queues: jobs for the payment provider, and e-mails. `flashsale migrate` installs pgmq
-- before it runs the migrations.
do $$
begin
  perform pgmq.create('payments');
  perform pgmq.create('notifications');
end
$$;
