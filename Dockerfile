# One image for api, worker, provider and migrate; the container's command selects one.
# The version of Python is the one that constraints.txt was made with.
FROM python:3.11-slim-bookworm AS build
RUN python -m venv /venv
WORKDIR /build
COPY pyproject.toml README.md constraints.txt ./
COPY src src
COPY sql sql
COPY migrations migrations
RUN /venv/bin/pip install --no-cache-dir --constraint constraints.txt .

FROM python:3.11-slim-bookworm
# `flashsale psql` needs psql, and this image has no embedded Postgres that would include it.
RUN apt-get update \
  && apt-get install --yes --no-install-recommends postgresql-client \
  && rm -rf /var/lib/apt/lists/*
# Only the provider's ledger is written. A named volume gets the owner of this folder.
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin flashsale \
  && install --directory --owner=flashsale --group=flashsale --mode=0700 /var/lib/flashsale
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER flashsale
WORKDIR /var/lib/flashsale
CMD ["flashsale", "--help"]
