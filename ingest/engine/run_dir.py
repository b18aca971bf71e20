"""Temporary directory of one ingest run, and whether the run that owns a directory is still alive.

    .work/<host>-<random>/                 decoded audio and frames, downloaded sources, watchdog markers
    .work/<host>-<random>/progress.json    heartbeat with the progress, for `uniavgen status`
    .work/<host>-<random>/alive            locked by the run's driver while it lives, touched every minute

It lies on the corpus's disk, which every machine of a cluster sees. Names are never reused, unlike process
numbers.
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

RUNS_FOLDER = ".work"
ALIVE_FILE = "alive"
PROGRESS_FILE = "progress.json"

TOUCH_S = 60.0
"""Seconds between two touches of the alive file."""

SILENT_S = 24 * 3600.0
"""Silence after which a run on another machine, whose lock may be invisible here, is dead. Heuristic."""


@contextmanager
def make_run_dir(root: Path) -> Iterator[Path]:
    """Make a run directory in the corpus at `root`; delete those of dead runs. Raises UserError."""
    from filelock import FileLock

    parent = root / RUNS_FOLDER
    for other in parent.glob("*-*"):
        if not is_running(root, other.name):
            shutil.rmtree(other, ignore_errors=True)
    run_dir = parent / f"{socket.gethostname()}-{uuid4().hex[:12]}"
    try:
        run_dir.mkdir(parents=True)
        lock = FileLock(run_dir / ALIVE_FILE)
        lock.acquire()
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(
                "the disk is full", where=root, hint="free some space and run again", kind="no-space"
            ) from error
        raise
    try:
        yield run_dir
    finally:
        lock.release()
        shutil.rmtree(run_dir, ignore_errors=True)


def touch_alive(run_dir: Path) -> None:
    """Touch the run's alive file, if the last touch is a minute old."""
    with suppress(OSError):
        if time.time() - (run_dir / ALIVE_FILE).stat().st_mtime > TOUCH_S:
            os.utime(run_dir / ALIVE_FILE)


def is_running(root: Path, run: str) -> bool:
    """Whether the run that owns the run directory named `run` is alive."""
    from filelock import FileLock, Timeout

    folder = root / RUNS_FOLDER / run
    try:
        age_s = time.time() - folder.stat().st_mtime
    except FileNotFoundError:
        return False
    try:
        silent_s = time.time() - (folder / ALIVE_FILE).stat().st_mtime
    except FileNotFoundError:
        return age_s < TOUCH_S  # it is being created or removed
    if run.rpartition("-")[0] != socket.gethostname():
        return silent_s < SILENT_S
    try:
        with FileLock(folder / ALIVE_FILE).acquire(timeout=0):
            return False
    except Timeout:
        return True
