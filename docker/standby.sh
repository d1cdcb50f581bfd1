#!/bin/sh
# A standby of db: copies it the first time, and from then on follows it. Once it was promoted it
# stays what it is. The mark comes last, so a copy that broke off is thrown away.
set -eu
if [ ! -e "$PGDATA/copied" ]; then
  find "$PGDATA" -mindepth 1 -delete
  pg_basebackup --pgdata="$PGDATA" --checkpoint=fast --write-recovery-conf \
    --dbname="host=${PRIMARY_HOST:-db} user=replicator password=$DATABASE_PASSWORD application_name=standby"
  touch "$PGDATA/copied"
fi
exec docker-entrypoint.sh "$@"
