"""Files of JSON lines that one process appends to while others read: on from where they stood, and past what is damaged.

A disk that is full, or a machine that stops, may leave half a line: the next one begins anew, and readers pass over the half.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Rows:
    """Rows that were read, the byte behind the last, and how many lines before it were none."""

    rows: list[dict[str, Any]]
    end: int
    damaged: int


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add one line. Raises OSError where the disk does not take it."""
    with path.open("a+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(row).encode() + b"\n")


def read_rows(path: Path, start: int = 0, most: int | None = None) -> Rows:
    """Rows of the whole lines that follow byte `start`, `most` lines at most; none where there is no file."""
    rows: list[dict[str, Any]] = []
    end, damaged, lines = start, 0, 0
    if not path.is_file():
        return Rows(rows, end, damaged)
    with path.open("rb") as file:
        file.seek(start)
        while most is None or lines < most:
            line = file.readline()
            if not line.endswith(b"\n"):  # the end, or a line that is being written
                break
            end, lines = end + len(line), lines + 1
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if isinstance(row, dict):
                rows.append(row)
            else:
                damaged += 1
    return Rows(rows, end, damaged)
