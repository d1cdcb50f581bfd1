"""Serving an application: granian, the log, and the first steps of a serving process."""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flashsale.processes import die_with_parent
from flashsale.settings import Settings, variable

if TYPE_CHECKING:
    from litestar import Litestar


def run_granian(
    target: str, host: str, port: int, settings: Settings, flags: Mapping[str, Any]
) -> int:
    """Runs an application on granian until SIGTERM, in one process with uvloop.

    target: "module:function" that makes the application. granian makes it in a child process, which
    reads its settings from the environment. So the flags of the command line are put there.
    """
    from granian import Granian
    from granian.constants import Interfaces, Loops

    for name, given in flags.items():
        if given is not None:
            os.environ[variable(name)] = str(given)
    Granian(
        target,
        factory=True,
        address=host,
        port=port,
        interface=Interfaces.ASGI,
        loop=Loops.uvloop,
        workers=1,
        backlog=settings.max_connections,
        backpressure=settings.max_connections,  # with event streams; more requests wait
        workers_kill_timeout=settings.shutdown_seconds,  # or an open event stream blocks it
        log_access=False,
        respawn_failed_workers=True,
    ).serve()
    return 0


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
