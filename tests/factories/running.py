"""Run commands as a user does; the output of a finished demo."""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hostile_folder import imported_names, make_hostile_folder

COMMAND = Path(sys.executable).parent / "uniavgen"


@cache
def current_folder() -> Path:
    """The folder in which commands run: it holds a user's own train.py, types.py and so on."""
    return make_hostile_folder(Path(tempfile.mkdtemp(prefix="uniavgen-test-")))


def uniavgen(
    *arguments: object, cwd: Path | None = None, timeout: float = 1500, program: Path = COMMAND
) -> dict[str, Any]:
    """Run a command with --json and return its summary; if it fails, fail with its messages."""
    words = [str(program), *(str(argument) for argument in arguments), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, cwd=cwd or current_folder())
    assert done.returncode == 0, done.stderr[-4000:]
    assert imported_names(current_folder()) == [], "code of the current folder was imported"
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return summary


@dataclass(frozen=True)
class Demo:
    """The demo's output folder and its printed summary."""

    folder: Path
    summary: dict[str, Any]

    @property
    def corpus(self) -> Path:
        return self.folder / "corpus"
