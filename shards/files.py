"""Small files that are either the old ones or the new ones, never half."""

from __future__ import annotations

import os
from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """Write a file by rename; one that holds this content already is left as it is."""
    if path.is_file() and path.read_bytes() == content:
        return
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)
