"""The README's commands, run as they stand there; and its tables, held against the code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from dev_support import running
from flashsale.refusals import CODES
from support import put_cluster, server_folder

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
MASKS = [
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", "<time>"),
    (r"\d\d:\d\d:\d\d\.\d+", "<duration>"),
]


def masked(text: str) -> str:
    for pattern, mask in MASKS:
        text = re.sub(pattern, mask, text)
    return text.strip()


def transcript() -> list[tuple[str, str]]:
    """The commands of the README's console blocks, and what they print."""
    blocks = "".join(re.findall(r"^```console\n(.*?)^```$", README, re.M | re.S))
    found = re.findall(r"^\$ (.*?)\n(.*?)(?=^\$ |\Z)", blocks, re.M | re.S)
    assert len(found) > 15
    return found


def test_the_readmes_transcript_is_what_happens() -> None:
    commands = transcript()
    with ExitStack() as stack:
        folder = stack.enter_context(server_folder())
        put_cluster(folder / "data")
        dev = stack.enter_context(running(folder))
        script = "\n".join(
            f"{command}\necho '<<<end {n}>>>'" for n, (command, _output) in enumerate(commands)
        )
        script = script.replace("localhost:8000", f"localhost:{dev.port}")
        script = script.replace(".venv/bin/flashsale", "flashsale")
        result = subprocess.run(
            ["bash", "-c", script],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
            cwd=ROOT,
            env={
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "FLASHSALE_DATA_DIR": str(folder / "data"),
            },
        )
    assert result.stderr == ""
    printed = re.split(r"<<<end \d+>>>\n", result.stdout)
    for (command, expected), actual in zip(commands, printed, strict=False):
        assert masked(actual) == masked(expected), f"$ {command}"


def test_every_code_is_in_the_errors_table() -> None:
    for code, meaning in CODES.items():
        assert re.search(rf"\| `{code}` \| {meaning.status} \|", README), code
