"""Helpers to run flashsale's commands as processes: environment, readiness, and stopping."""

from __future__ import annotations

import os
import subprocess
import urllib.error
import urllib.request

from flashsale.settings import variable


def environment(**settings: object) -> dict[str, str]:
    """Our environment, with these settings of flashsale's and without any other."""
    ours = {name: it for name, it in os.environ.items() if not name.startswith("FLASHSALE_")}
    return ours | {variable(name): str(it) for name, it in settings.items()}


def is_ready(base_url: str) -> bool:
    """Whether the API or the provider at this URL says that it is ready."""
    try:
        with urllib.request.urlopen(f"{base_url}/health/ready", timeout=2):  # noqa: S310 - http only
            return True
    except (urllib.error.URLError, OSError):
        return False


def stop(process: subprocess.Popen[bytes], timeout_seconds: float = 30.0) -> None:
    """Sends SIGTERM. Errors: TimeoutError for a process that did not end and had to be killed."""
    process.terminate()
    try:
        process.wait(timeout_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise TimeoutError(f"{process.args!r} did not stop within {timeout_seconds:g} s") from None
