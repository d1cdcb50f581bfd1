"""The README's walk-through and the tutorial, typed as they stand there.

The README's is pasted as a whole, pasted again on the same data, and, in CI, typed at a person's
speed.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from dev_support import Dev, running
from support import put_cluster, server_folder

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
README = README[README.index("## A sale by curl") : README.index("## Architecture")]
TUTORIAL = (ROOT / "docs" / "tutorial" / "your-first-sale.md").read_text()
HOLD = '"hold_seconds": 60'
MASKS = [
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "<time>"),
    (r"\d\d:\d\d:\d\d(\.\d+)?", "<duration>"),
    (r"\b[1-9]\d{9,18}\b", "<id>"),  # of an order; a ticket is shorter
    (r"http://127\.0\.0\.1:\d+/sessions/\w+", "<checkout>"),
    (r" +", " "),  # columns are as wide as the longest id
    (r"-{2,}", "--"),
]


class Step(NamedTuple):
    """A block of commands, and the text that the page shows below it; `...`: any lines."""

    commands: str
    shown: str


def steps(page: str) -> list[Step]:
    """Every `sh` block of the page, with the block of answers that follows it."""
    found = re.findall(
        r"^```sh\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", page, re.MULTILINE | re.DOTALL
    )
    return [Step(*block) for block in found]


def is_as_shown(shown: str, printed: str) -> bool:
    """Whether the answer is what the page shows, with other ids and times."""
    lines = masked(shown).splitlines()
    pattern = "".join(
        r"(?:.*\n)*?" if line.strip() == "..." else re.escape(line) + r"\n" for line in lines
    )
    return re.fullmatch(pattern, masked(printed)) is not None


def masked(text: str) -> str:
    """The text without blank lines, and without what is different each time."""
    for pattern, mask in MASKS:
        text = re.sub(pattern, mask, text)
    return "".join(line.rstrip() + "\n" for line in text.splitlines() if line.strip())


def typed(page: str, dev: Dev, folder: Path, seconds_between: float = 0.0) -> list[str]:
    """Types the commands into one shell in the repository's folder. Returns each block's output."""
    script = ""
    for step in steps(page):
        script += step.commands.replace("\nask", f"\nsleep {seconds_between:g}; ask").replace(
            "\nawait", f"\nsleep {seconds_between:g}; await"
        )
        script += f"sleep {seconds_between:g}; echo '<<<end>>>'\n"
    script = script.replace("localhost:8000", f"localhost:{dev.port}")
    script = script.replace(".venv/bin/flashsale", f"{sys.executable} -m flashsale")
    script = script.replace(".flashsale/", f"{folder}/data/")
    result = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        cwd=ROOT,
        env={**os.environ, "FLASHSALE_DATA_DIR": str(folder / "data")},
    )
    assert result.stderr == ""
    return result.stdout.split("<<<end>>>\n")[:-1]


def assert_as_shown(page: str, printed: list[str]) -> None:
    """Checks that each block printed what the page shows below it."""
    for step, answer in zip(steps(page), printed, strict=True):
        if step.shown:
            assert is_as_shown(step.shown, answer), f"{step.commands}\nprinted\n{answer}"


def with_shorter_holds(page: str) -> str:
    """The page with a shorter hold than a minute, which is long enough for a busy machine."""
    assert page.count(HOLD) == 1
    return page.replace(HOLD, '"hold_seconds": 10')


@pytest.mark.timeout(240)
def test_the_walk_through_prints_what_the_readme_shows_also_the_second_time() -> None:
    page = with_shorter_holds(README)
    assert len(steps(page)) == 5
    with server_folder() as folder:
        put_cluster(folder / "data")
        with running(folder) as dev:
            for _time in range(2):
                assert_as_shown(page, typed(page, dev, folder))


@pytest.mark.slow
def test_the_tutorial_prints_what_it_shows() -> None:
    assert len(steps(TUTORIAL)) == 8
    with server_folder() as folder:
        put_cluster(folder / "data")
        with running(folder) as dev:
            assert_as_shown(TUTORIAL, typed(TUTORIAL, dev, folder))


@pytest.mark.storm
@pytest.mark.timeout(300)
def test_the_walk_through_can_be_followed_at_a_persons_speed() -> None:
    """Holds of a minute, as the README has them, and three seconds between the commands."""
    with server_folder() as folder:
        put_cluster(folder / "data")
        with running(folder) as dev:
            assert_as_shown(README, typed(README, dev, folder, seconds_between=3))


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ('"ticket": 3,\n...\n', '"ticket": 3,\n"position": 1\n}\n', True),
        ('"ticket": 3,\n...\n', '"ticket": 4,\n"position": 1\n}\n', False),
        ('"ticket": 3,\n"position": 1\n}\n', '"ticket": 3,\n}\n', False),
        ('"at": "2026-11-27T10:01:00.9Z"\n', '"at": "2027-01-01T00:00:00.123456Z"\n', True),
        ('"at": "2026-11-27T10:01:00.9Z"\n', '"at": null\n', False),
        (" id  | n \n-----+---\n 4294967300 | 4\n", " id | n\n---+--\n 30064771076 | 4\n", True),
        (" id  | n \n-----+---\n 4294967300 | 4\n", " id | n\n---+--\n 30064771076 | 5\n", False),
    ],
)
def test_an_answer_that_differs_from_what_is_shown_is_noticed(
    shown: str, printed: str, same: bool
) -> None:
    assert is_as_shown(shown, printed) is same


@pytest.mark.slow
def test_the_command_for_psql_that_dev_prints_works_as_printed() -> None:
    with server_folder() as folder:
        put_cluster(folder / "data")
        with running(folder) as dev:
            printed = dev.output.read_text()
            (command,) = re.findall(r"^psql +(.*)$", printed, re.MULTILINE)
            (schema,) = re.findall(r"OpenAPI at (\S+)\)", printed)
            assert dev.http.get(schema).json()["info"]["title"] == "flashsale"
            query = "select count(*) as items from flashsale.item_status"
            result = subprocess.run(
                [*shlex.split(command), "--", "-At", "-c", query],
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
            assert (result.stdout, result.stderr) == ("0\n", "")
