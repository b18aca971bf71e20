"""Atomic file replacement and an advisory lock."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from uniavgen.shards.errors import UserError


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file by rename, unless it already has this content. Safe with several writers at once."""
    if path.is_file() and path.read_bytes() == content:
        return
    part = path.with_name(f".{path.name}.{uuid4().hex}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def locked(path: Path, busy: str, hint: str = "wait until it is done") -> Iterator[None]:
    """Hold a lock file, which the system releases if the process dies.

    Raises UserError with the text `busy` if another process holds it.
    """
    from filelock import FileLock, Timeout

    try:
        lock = FileLock(path).acquire(timeout=0)
    except Timeout:
        raise UserError(busy, where=path.parent, hint=hint, kind="busy") from None
    with lock:
        yield
