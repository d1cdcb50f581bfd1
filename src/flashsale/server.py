"""How applications are served: granian, the log, and what a serving process does first."""

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
    """Runs an application on granian until SIGTERM; one process, uvloop.

    target: "module:function" that makes the application. granian starts a process of its own for
    it, which reads the environment: so the flags of the command line go there.
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
        backpressure=settings.max_connections,  # event streams count too; above it requests wait
        workers_kill_timeout=settings.shutdown_seconds,  # else an open event stream blocks the end
        log_access=False,
        respawn_failed_workers=True,
    ).serve()
    return 0


def api() -> Litestar:
    """The API's application, made in granian's process for it."""
    from flashsale.api.app import create_app

    enter_process()
    app = create_app(Settings.from_env())
    # The objects that exist now stay, so that no collection has to look at them; and requests leave
    # few cycles behind, so that collecting can wait. Without this a storm loses a fifth of its
    # throughput.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    return app


def enter_process() -> None:
    """What a process of granian's does first: it ends with its parent, and logs."""
    die_with_parent(signal.SIGTERM)
    start_log()


def start_log() -> None:
    """One line per event on standard error, times in UTC."""
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)sZ %(levelname)s %(name)s %(message)s"
    )
