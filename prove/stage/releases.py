"""Releases of the code to run: this tree, the tree of a commit, or this one with other SQL."""

from __future__ import annotations

import io
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

from flashsale.testing.processes import environment

ROOT = Path(__file__).parents[2]
CODE = ("src", "sql", "migrations")


@dataclass(frozen=True)
class Release:
    """Code that a process can be started from. sql: another folder in place of the tree's."""

    name: str
    tree: Path = ROOT
    sql: Path | None = None

    def environment(self, **settings: object) -> dict[str, str]:
        """Of a process of this release, with these settings of flashsale's."""
        ours = environment(**settings) | {"PYTHONPATH": str(self.tree / "src")}
        return ours | ({"FLASHSALE_SQL_DIR": str(self.sql)} if self.sql else {})

    def migrations(self) -> set[str]:
        """The names of its migrations."""
        return {path.stem for path in (self.tree / "migrations").glob("*.sql")}


def of_commit(commit: str, folder: Path) -> Release | None:
    """The release of a commit, unpacked into a folder; None without that commit in a history."""
    try:
        # git would refuse a clone that belongs to another user, such as CI's.
        git = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), "archive", "--format=zip"]
        archive = subprocess.run([*git, commit, *CODE], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    with ZipFile(io.BytesIO(archive.stdout)) as files:
        files.extractall(folder)
    return Release(commit, folder)


def with_a_comment(release: Release, folder: Path) -> Release:
    """The same release with a comment line added to sql/, as a compatible change."""
    sql = folder / "sql"
    shutil.copytree(release.sql or release.tree / "sql", sql)
    with (sql / "reserve.sql").open("a") as file:
        file.write("-- A comment that changes nothing.\n")
    return Release(f"{release.name} with a comment line in sql/", release.tree, sql)
