"""Running the command as a person does, and what a finished demo is."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMAND = Path(sys.executable).parent / "uniavgen"


def uniavgen(*arguments: object, cwd: Path | None = None, timeout: float = 1500) -> dict[str, Any]:
    """Run a command with --json and return its summary; fail with its messages where it does."""
    words = [str(COMMAND), *(str(argument) for argument in arguments), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, cwd=cwd)
    assert done.returncode == 0, done.stderr[-4000:]
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return summary


@dataclass(frozen=True)
class Demo:
    """The folder that the demo filled and the summary that it printed."""

    folder: Path
    summary: dict[str, Any]

    @property
    def corpus(self) -> Path:
        return self.folder / "corpus"
