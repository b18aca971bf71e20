"""The folder for files that one run throws away, and whether the run that one belongs to is still there.

    .work/<host>-<random>/         sound and pictures that wait for their step, fetched sources, markers of the watchdog
    .work/<host>-<random>/alive    locked by the run's driver for as long as it lives, and touched by it now and then

It lies on the corpus's own disk, where every machine of a cluster sees it. The name is never used again: a process number
comes back, in a container with every start.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from uniavgen.shards.errors import UserError

WORK = ".work"
ALIVE = "alive"

TOUCH_S = 60.0
"""How often a run shows that it lives."""

SILENT_S = 24 * 3600.0
"""Silence after which a run on another machine is gone (our choice): its lock may not be seen from here."""


@contextmanager
def work_folder(root: Path) -> Iterator[Path]:
    """A new folder for a run on the corpus at `root`; those of runs that are gone are removed. Raises UserError (no-space)."""
    from filelock import FileLock

    parent = root / WORK
    for other in parent.glob("*-*"):
        if not is_running(root, other.name):
            shutil.rmtree(other, ignore_errors=True)
    work = parent / f"{socket.gethostname()}-{uuid4().hex[:12]}"
    try:
        work.mkdir(parents=True)
        lock = FileLock(work / ALIVE)
        lock.acquire()
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(
                "the disk is full", where=root, hint="free some space and run again", kind="no-space"
            ) from error
        raise
    try:
        yield work
    finally:
        lock.release()
        shutil.rmtree(work, ignore_errors=True)


def show_life(work: Path) -> None:
    """Touch the run's sign of life, if it is time to."""
    with suppress(OSError):
        if time.time() - (work / ALIVE).stat().st_mtime > TOUCH_S:
            os.utime(work / ALIVE)


def is_running(root: Path, owner: str) -> bool:
    """Whether the run that a work folder is named after still runs."""
    from filelock import FileLock, Timeout

    folder = root / WORK / owner
    try:
        made_s = time.time() - folder.stat().st_mtime
    except FileNotFoundError:
        return False
    try:
        silent_s = time.time() - (folder / ALIVE).stat().st_mtime
    except FileNotFoundError:
        return made_s < TOUCH_S  # it is being made, or being removed
    if owner.rpartition("-")[0] != socket.gethostname():
        return silent_s < SILENT_S
    try:
        with FileLock(folder / ALIVE).acquire(timeout=0):
            return False
    except Timeout:
        return True
