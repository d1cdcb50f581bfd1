"""Serving an application: granian, the log, and the first steps of a serving process."""

from __future__ import annotations

import gc
import logging
import math
import os
import signal
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flashsale.processes import die_with_parent, raise_open_files
from flashsale.settings import Settings, variable

if TYPE_CHECKING:
    from litestar import Litestar

log = logging.getLogger("flashsale")

_OTHER_FILES = 64
"""Open files that a process needs beside its connections: libraries, pipes, the event loop."""
_BUFFER_BYTES = 32_768
"""What a connection may keep in memory: longer headers get 431. granian's default is 13 times as
much, which max_connections clients that never end their headers would make 7 GB."""


def run_granian(
    target: str, host: str, port: int, settings: Settings, flags: Mapping[str, Any]
) -> int:
    """Runs an application on granian until SIGTERM, in one process with uvloop.

    It speaks only HTTP/1.1. granian also knows HTTP/2, but keeps whatever a client sends as headers
    (16 MiB per stream), and waits for ever for the first bytes of a connection as long as these may
    turn out to be HTTP/2.

    target: "module:function" that makes the application. granian makes it in a child process, which
    reads its settings from the environment. So the flags of the command line are put there.
    """
    from granian import Granian
    from granian.constants import HTTPModes, Interfaces, Loops
    from granian.http import HTTP1Settings

    start_log()
    connections = allowed_connections(settings)
    for name, given in flags.items():
        if given is not None:
            os.environ[variable(name)] = str(given)
    Granian(
        target,
        factory=True,
        address=host,
        port=port,
        interface=Interfaces.ASGI,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(
            header_read_timeout=math.ceil(settings.idle_connection_seconds * 1000),
            max_buffer_size=_BUFFER_BYTES,
        ),
        websockets=False,
        loop=Loops.uvloop,
        workers=1,
        backlog=settings.max_connections,
        backpressure=connections,  # with event streams; more connections wait
        workers_kill_timeout=settings.shutdown_seconds,  # or an open event stream blocks it
        log_access=False,
        respawn_failed_workers=True,
    ).serve()
    return 0


def allowed_connections(settings: Settings) -> int:
    """How many connections from clients a process can have: max_connections, or fewer.

    It raises the limit of open files if that is necessary, and logs if it can't.
    """
    database = settings.reserve_connections + settings.pay_connections + settings.read_connections
    free = files_for("MAX_CONNECTIONS", settings.max_connections, database)
    return max(1, min(settings.max_connections, free))


def files_for(name: str, wanted: int, others: int) -> int:
    """How many files may be open beside `others`; it logs if these are fewer than wanted.

    name: of the setting that wants them, for the log.
    """
    others += _OTHER_FILES
    limit = raise_open_files(wanted + others)
    if limit < wanted + others:
        log.warning(
            "the limit of open files is %d, so FLASHSALE_%s=%d can't be reached: only %d are left "
            "beside other files; raise the hard limit (ulimit -n) to %d",
            limit,
            name,
            wanted,
            max(0, limit - others),
            wanted + others,
        )
    return limit - others


def api() -> Litestar:
    """The API's application, made in granian's process for it."""
    from flashsale.api.app import create_app

    enter_process()
    app = create_app(Settings.from_env())
    # The objects that exist now live as long as the process, so the garbage collector should not
    # visit them. Requests leave few cycles behind, so it may run rarely. Without these two settings
    # a storm loses a fifth of its throughput.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    return app


def enter_process() -> None:
    """The first steps of granian's child process: it ends with its parent, and logs."""
    die_with_parent(signal.SIGTERM)
    start_log()


def start_log() -> None:
    """One line per event on standard error, times in UTC."""
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)sZ %(levelname)s %(name)s %(message)s"
    )
