# The official image with pg_cron. `flashsale migrate` installs pgmq from its PyPI package.
FROM postgres:17-bookworm
RUN apt-get update \
  && apt-get install --yes --no-install-recommends postgresql-17-cron \
  && rm -rf /var/lib/apt/lists/*
COPY docker/init.sql /docker-entrypoint-initdb.d/flashsale.sql
COPY docker/standby.sh /usr/local/bin/standby.sh
