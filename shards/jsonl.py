"""JSON lines files that one process appends to while others read.

A full disk or a killed process can leave half a line. The next row then starts on a new line, and readers
skip the damaged one.
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
    """Rows of a file, the byte offset after the last one, and the number of damaged lines before it."""

    rows: list[dict[str, Any]]
    end: int
    damaged: int


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append one line. Raises OSError if it cannot be written."""
    with path.open("a+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(row).encode() + b"\n")


def read_rows(path: Path, start: int = 0, most: int | None = None) -> Rows:
    """Read the complete lines after byte `start`, at most `most` of them. A missing file has no rows."""
    rows: list[dict[str, Any]] = []
    end, damaged, lines = start, 0, 0
    if not path.is_file():
        return Rows(rows, end, damaged)
    with path.open("rb") as file:
        file.seek(start)
        while most is None or lines < most:
            line = file.readline()
            if not line.endswith(b"\n"):  # end of file, or a line that is still being written
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
