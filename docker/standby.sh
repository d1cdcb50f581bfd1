#!/bin/sh
# A standby of db: it copies db at its first start, and follows it from then on. After it was
# promoted it stays a primary. The file `copied` is made last, so an incomplete copy is thrown away.
set -eu
if [ ! -e "$PGDATA/copied" ]; then
  find "$PGDATA" -mindepth 1 -delete
  pg_basebackup --pgdata="$PGDATA" --checkpoint=fast --write-recovery-conf \
    --dbname="host=${PRIMARY_HOST:-db} user=replicator password=$REPLICATION_PASSWORD application_name=standby"
  touch "$PGDATA/copied"
fi
exec docker-entrypoint.sh "$@"
