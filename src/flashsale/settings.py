"""Settings: every timeout, limit and size, from FLASHSALE_* variables and command line flags."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from flashsale import standard_webhooks


class SettingsError(ValueError):
    """A setting is missing or invalid. The message says which, and what to do."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of all processes.

    The environment variable of a field is FLASHSALE_ followed by its name in capitals.
    """

    # Where things are
    database_url: str = ""
    """postgresql://… of the database; empty: `flashsale dev` starts an embedded one."""
    database_role: str = ""
    """Role that connections act as. Empty: the part's own (flashsale_api, flashsale_worker). none:
    the login's, and no start-up parameters, which poolers such as PgBouncer refuse."""
    host: str = "127.0.0.1"
    port: int = 8000
    provider_host: str = "127.0.0.1"
    provider_port: int = 8001
    provider_url: str = "http://127.0.0.1:8001"
    """Where the payment provider is reached; its checkout URLs start with this."""
    provider_ledger: str = "provider-ledger.jsonl"
    """File of the simulated provider: captures and refunds, append-only."""
    webhook_url: str = "http://127.0.0.1:8000/webhooks/payments"
    """Where the simulated provider sends its events."""
    webhook_secret: str = ""
    """Key of the webhook's signature, shared with the provider. No default."""

    # Plug-ins
    provider: str = "flashsale.providers.http:create"
    """The payment provider, as module:factory. The default speaks to `flashsale provider`."""
    sender: str = "flashsale.worker.mail:LogSender"
    """What sends e-mail, as module:factory. The default only writes it into the log."""
    smtp_url: str = ""
    """The mail server of flashsale.worker.smtp:create: smtp://, smtp+starttls:// or smtps://."""
    mail_from: str = ""
    """The sender's address of e-mails."""
    events_url: str = ""
    """Where the worker delivers the feed of events, http or https. Empty: nowhere."""
    events_secret: str = ""
    """whsec_<base64>, with which deliveries are signed; several, separated by a space, while the
    receiver changes from one to another. No default."""

    # The service
    acquire_timeout_seconds: float = 2.0
    """How long connecting to the database may take."""
    reserve_connections: int = 2
    """For requests for units: batches, and, if there are two or more, one for requests that must
    wait for a lock."""
    pay_connections: int = 4
    """For payments, cancellations and terms of sale."""
    read_connections: int = 2
    """For everything else: reads, event streams, metrics. 0: those of reserve, so that a replica
    needs two in all, and one more for a second when it is asked whether it is ready."""
    reserve_wait_ms: int = 25
    """A request for a unit that would queue for longer gets 503 at once."""
    pay_wait_ms: int = 2_000
    """The same for payments, cancellations and terms of sale; also the longest wait for an order or
    item that somebody else has locked."""
    read_wait_ms: int = 2_000
    """The same for everything else."""
    reserve_deadline_ms: int = 4_000
    """A request for a unit is answered by then; half of it at most is the statement's."""
    pay_deadline_ms: int = 10_000
    """The same for payments and cancellations."""
    read_deadline_ms: int = 4_000
    """The same for everything else."""
    reserve_lock_ms: int = 50
    """A batch that meets a lock for so long is taken apart, so that only the request that is held
    waits."""
    lock_ms: int = 100
    """A payment, cancellation, change of terms or result of a job that meets a lock for so long
    gives its connection back, and is tried again until its wait is over."""
    batch_size: int = 256
    """Requests for units that travel to the database together; at most 1000."""
    request_deadline_seconds: float = 10.0
    """How long the body of a request may take to arrive."""
    statement_cache_size: int = 100
    """Prepared statements that a connection keeps; 0 behind PgBouncer before 1.21."""
    max_connections: int = 16_384
    """Connections at once, event streams and idle ones included; more wait without an answer."""
    idle_connection_seconds: float = 30.0
    """A connection that is silent for so long before, within the headers of, or after a request is
    cut."""
    max_body_bytes: int = 16_384
    """A larger body gets 413."""
    webhook_tolerance_seconds: int = 300
    """How far a webhook's timestamp may be off."""
    sse_poll_seconds: float = 0.25
    """How often watched orders are read, up to 500 in a query."""
    sse_heartbeat_seconds: float = 15.0
    readiness_sweep_lag_seconds: float = 5.0
    """A worker that has not swept for so long is not well, and readiness reports it."""
    readiness_timeout_seconds: float = 1.0
    """Not ready if the database does not answer within this."""
    shutdown_seconds: int = 10
    """How long `flashsale serve` finishes requests in flight before it is killed."""

    # The worker
    statement_timeout_seconds: float = 5.0
    """How long a call of the worker to the database may take."""
    sweep_interval_seconds: float = 0.25
    job_poll_seconds: float = 0.1
    """How often an idle worker looks for jobs."""
    job_batch: int = 100
    """Jobs taken at once."""
    job_concurrency: int = 20
    """Calls to the provider under way at once."""
    mail_concurrency: int = 200
    """E-mails under way at once."""
    job_lease_seconds: int = 30
    """How long a job is the worker's alone."""
    provider_timeout_seconds: float = 10.0
    """How long a call to the provider may take; well inside the lease."""
    delivery_timeout_seconds: float = 15.0
    """How long the delivery of an event to events_url may take."""
    delivery_backoff_seconds: float = 1.0
    """Wait after a first failed delivery; it doubles up to the maximum."""
    delivery_backoff_max_seconds: float = 60.0
    """The longest wait, also if the receiver asks for a longer one; at most an hour."""
    worker_stop_seconds: float = 10.0
    """How long a stopping worker finishes what is under way."""

    # The simulated provider
    event_timeout_seconds: float = 5.0
    event_backoff_seconds: float = 0.2
    """Wait before the second delivery of an event; it doubles up to the maximum."""
    event_backoff_max_seconds: float = 30.0
    fault_seed: int = 0
    """Faults are drawn from a generator that starts here."""
    faults: str = "{}"
    """Faults from the start, as the JSON that PUT /faults takes."""

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if not 0 < getattr(self, name) < math.inf:
                raise SettingsError(f"{variable(name)}: must be more than 0, and finite")
        for name in ("port", "provider_port"):
            if getattr(self, name) > 65_535:
                raise SettingsError(f"{variable(name)}: must be a port, 1 to 65535")
        if self.batch_size > 1000:
            raise SettingsError(f"{variable('batch_size')}: must be at most 1000")
        for name in _OR_NONE:
            if getattr(self, name) < 0:
                raise SettingsError(f"{variable(name)}: must be 0 or more")
        self._check_plug_ins()
        self._check_delivery()
        if self.database_url and not self.database_url.startswith(("postgresql://", "postgres://")):
            raise SettingsError(
                f"{variable('database_url')}: must be a URL like "
                "postgresql://user:password@host:5432/name"
            )
        if self.provider_timeout_seconds * 2 > self.job_lease_seconds:
            raise SettingsError(
                f"{variable('provider_timeout_seconds')}: must be at most half of "
                f"{variable('job_lease_seconds')}, or a slow provider makes two workers do one job"
            )

    def _check_plug_ins(self) -> None:
        for name in ("provider", "sender"):
            if not _PLUG_IN.fullmatch(getattr(self, name)):
                raise SettingsError(
                    f"{variable(name)}: must be module:factory, such as shop.payments:create, and "
                    f"is {getattr(self, name)!r}"
                )

    def _check_delivery(self) -> None:
        if self.events_url and not _is_receiver(self.events_url):
            raise SettingsError(
                f"{variable('events_url')}: must be a URL like https://shop.example/events, "
                "without a user, a password and a fragment: the signature tells who sends"
            )
        if self.events_secret:
            try:
                standard_webhooks.keys_of(self.events_secret)
            except ValueError as error:
                raise SettingsError(f"{variable('events_secret')}: {error}") from None
        for name in ("delivery_timeout_seconds", "delivery_backoff_max_seconds"):
            if getattr(self, name) > 3600:
                raise SettingsError(f"{variable(name)}: must be at most 3600")
        if self.delivery_backoff_seconds > self.delivery_backoff_max_seconds:
            raise SettingsError(
                f"{variable('delivery_backoff_seconds')}: must be at most "
                f"{variable('delivery_backoff_max_seconds')}"
            )

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{k}={v!r}' for k, v in self.__rich_repr__())})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """The settings that may be shown, without secrets and passwords."""
        shown = {name: getattr(self, name) for name in self.__struct_fields__}
        shown["webhook_secret"] = "***" if self.webhook_secret else ""
        shown["database_url"] = without_password(self.database_url)
        shown["smtp_url"] = without_password(self.smtp_url)
        shown["events_url"] = without_query(self.events_url)
        shown["events_secret"] = "***" if self.events_secret else ""
        return list(shown.items())

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
        """Reads the environment. Overrides that are not None take precedence.

        Variables that Kubernetes makes from a Service of our name are left out.
        Errors: SettingsError for an unknown variable, or a value that is not of its type.
        """
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        for name, given in environ.items():
            if not _is_setting(name) or _is_of_kubernetes(name, given):
                continue
            field = name.removeprefix("FLASHSALE_").lower()
            if field not in _TYPES:
                raise SettingsError(f"{name}: there is no such setting; `flashsale --help` tells")
            values[field] = _parse(name, given, _TYPES[field])
        values |= {name: value for name, value in overrides.items() if value is not None}
        return cls(**values)

    def need_database_url(self) -> str:
        """The database's URL. Errors: SettingsError if there is none."""
        if not self.database_url:
            raise SettingsError(
                "FLASHSALE_DATABASE_URL is not set: give the URL of a PostgreSQL 15 or later, or "
                "use `flashsale dev`, which brings its own"
            )
        return self.database_url

    def need_webhook_secret(self) -> str:
        """The webhook's key. Errors: SettingsError if there is none."""
        if not self.webhook_secret:
            raise SettingsError(
                "FLASHSALE_WEBHOOK_SECRET is not set: give the service and the provider the same "
                "secret, for example from `openssl rand -hex 32`"
            )
        return self.webhook_secret

    def need_events_secret(self) -> str:
        """The secrets with which deliveries are signed. Errors: SettingsError if there is none."""
        if not self.events_secret:
            raise SettingsError(
                "FLASHSALE_EVENTS_SECRET is not set, and FLASHSALE_EVENTS_URL is: give the worker "
                'and the receiver the same secret, for example from `echo "whsec_$(openssl rand '
                '-base64 32)"`'
            )
        return self.events_secret


_OTHER_VARIABLES = frozenset({"FLASHSALE_DATA_DIR", "FLASHSALE_SQL_DIR"})
"""Variables of ours that are no settings: the first is the default of a flag, see `flashsale psql
--help`; the second is for version.sql_folder()."""

_FOR_TESTS = "FLASHSALE_TEST_"
"""Variables that begin so are for tests; the service does not look at them."""

_PLUG_IN = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")

_TYPES: dict[str, type] = {f.name: f.type for f in msgspec.structs.fields(Settings)}
_OR_NONE = ("statement_cache_size", "read_connections")
_POSITIVE = [
    name
    for name, kind in _TYPES.items()
    if kind in (int, float) and name not in (*_OR_NONE, "fault_seed")
]


def _is_setting(name: str) -> bool:
    if name in _OTHER_VARIABLES or name.startswith(_FOR_TESTS):
        return False
    return name.startswith("FLASHSALE_")


_FORMS_OF_KUBERNETES = [
    (re.compile(f"FLASHSALE_(?:[A-Z0-9_]+_)?{name}"), re.compile(value))
    for name, value in {
        r"SERVICE_HOST": r"[0-9a-fA-F.:]+",
        r"SERVICE_PORT(?:_[A-Z0-9_]+)?": r"[0-9]+",
        r"PORT(?:_[0-9]+_(?:TCP|UDP|SCTP))?": r"(?:tcp|udp|sctp)://\S+:[0-9]+",
        r"PORT_[0-9]+_(?:TCP|UDP|SCTP)_PROTO": r"tcp|udp|sctp",
        r"PORT_[0-9]+_(?:TCP|UDP|SCTP)_PORT": r"[0-9]+",
        r"PORT_[0-9]+_(?:TCP|UDP|SCTP)_ADDR": r"[0-9a-fA-F.:]+",
    }.items()
]
"""What each pod of a namespace gets for a Service named flashsale or flashsale-…: name and value.
The value belongs to the form, so that a typing error in a setting of ours is still noticed."""


def _is_of_kubernetes(name: str, given: str) -> bool:
    return any(n.fullmatch(name) and v.fullmatch(given) for n, v in _FORMS_OF_KUBERNETES)


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return f"FLASHSALE_{name.upper()}"


def without_password(url: str) -> str:
    """The database URL without its password, to be shown."""
    return re.sub(r"(?<=//)([^:/@]*):.*@", r"\1:***@", re.sub(r"(password=)[^&\s]*", r"\1***", url))


def without_query(url: str) -> str:
    """The URL of a receiver to be shown: its query may be a secret."""
    return re.sub(r"\?.*", "?***", url, flags=re.DOTALL)


def _is_receiver(url: str) -> bool:
    if not all("!" <= c <= "~" for c in url):
        return False
    try:
        parts = urlsplit(url)
        given = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none, an address in half a pair of brackets
        return False
    return given and "@" not in parts.netloc and "#" not in url


def _parse(name: str, given: str, kind: type) -> Any:
    try:
        return kind(given)
    except ValueError:
        wanted = {int: "a whole number", float: "a number"}[kind]
        raise SettingsError(f"{name}: {given!r} is not {wanted}") from None
