-- Prepares a new cluster for `flashsale migrate`. This runs once, as the superuser. migrate runs as
-- the owner of the database, who is no superuser and so can't install pg_cron.
\getenv password DATABASE_PASSWORD
\getenv replication_password REPLICATION_PASSWORD
create role flashsale login createrole password :'password';
grant pg_use_reserved_connections to flashsale; -- so that tools can't take the service's last connections
-- Whatever the service does, others get in. The limits of the audiences' roles are in sql/roles.sql.
alter role flashsale connection limit 280;
alter role flashsale set idle_in_transaction_session_timeout = '5min';
create database flashsale owner flashsale template template0 encoding 'UTF8' locale 'C';
-- The role of a standby (docs/how-to/fail-over.md), which connects from compose's network.
create role replicator login replication connection limit 5 password :'replication_password';
\! echo 'host replication replicator samenet scram-sha-256' >> "$PGDATA/pg_hba.conf"
select pg_reload_conf();
\connect flashsale
create extension pg_cron;
grant usage on schema cron to flashsale;
-- Else every role may write large objects, as many as the disk holds.
revoke execute on function lo_create(oid), lo_creat(integer), lo_from_bytea(oid, bytea) from public;
