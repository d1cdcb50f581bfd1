"""Subjects of commits fit into a line of `git log`, since that became the rule."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BASELINE = "df630b0"
"""The last commit before the rule."""
LONGEST = 72


def git(*arguments: str) -> str | None:
    """The output of git; None if it fails, or if there is no git."""
    try:
        return subprocess.run(
            # git would refuse a clone that belongs to another user, such as CI's.
            ["git", "-c", f"safe.directory={ROOT}", "-C", ROOT, *arguments],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def subjects() -> list[str]:
    """The subjects since the baseline."""
    top = git("rev-parse", "--show-toplevel")
    if top is None or Path(top.strip()) != ROOT:
        pytest.skip("this is no clone, so there are no commits to check")
    found = git("log", "--no-merges", "--format=%s", f"{BASELINE}..HEAD")
    if found is None:  # the baseline is not there
        if git("rev-parse", "--is-shallow-repository") != "true\n":
            pytest.skip(f"this is another history, without the commit {BASELINE}")
        found = git("log", "--no-merges", "--format=%s")  # a shallow clone has later commits only
    return (found or "").splitlines()


def too_long(subjects: list[str]) -> list[str]:
    return [f"{len(s)} characters: {s}" for s in subjects if len(s) > LONGEST]


def test_commit_subjects_fit_into_72_characters() -> None:
    assert too_long(subjects()) == []


def test_a_subject_that_is_too_long_is_found() -> None:
    assert too_long(["a" * 72, "b" * 73]) == [f"73 characters: {'b' * 73}"]
