"""Locks that keep a run folder to one writer: one of the driver, one of the first training rank.

The system releases both when their process dies, also by kill -9. The rank's lock is needed because training
workers can outlive a killed driver for some seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from uniavgen.shards.errors import UserError
from uniavgen.train.checkpoint.run_folder import RunFolder

log = logging.getLogger(__name__)

DRIVER_LOCK = ".train.lock"
"""Lock file of the driver, in the run folder."""
ALIVE_FILE = ".train.alive.json"
"""Heartbeat of the driver, in the run folder."""
RANK_LOCK = ".rank.lock"
"""Lock file of the first training rank, in a stage's folder."""
RANK_WAIT_S = 120.0
"""Seconds that a first rank waits for one that is left of a killed run. Heuristic."""


@contextmanager
def only_driver(run_dir: str | Path) -> Iterator[None]:
    """Hold the driver's lock of a run folder. One process can hold it several times.

    Raises UserError of kind `busy` if another process holds it.
    """
    with _held(Path(run_dir).absolute() / DRIVER_LOCK, 0, "another command trains in this run folder"):
        yield


@contextmanager
def only_trainer(folder: RunFolder, rank: int) -> Iterator[None]:
    """Hold the trainer's lock of a stage on rank 0; other ranks hold nothing.

    Raises UserError of kind `busy` after `RANK_WAIT_S` seconds.
    """
    busy = "training workers of another run still write here"
    with _held(folder.path / RANK_LOCK, RANK_WAIT_S, busy) if rank == 0 else nullcontext():
        yield


@contextmanager
def _held(path: Path, wait_s: float, busy: str) -> Iterator[None]:
    from filelock import FileLock, Timeout

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, is_singleton=True).acquire(timeout=wait_s)
    except Timeout:
        hint = "wait until it is done, or stop it and run this again"
        raise UserError(busy, where=path.parent, hint=hint, kind="busy") from None
    except (NotImplementedError, OSError) as error:
        if isinstance(error, PermissionError | FileNotFoundError):
            raise UserError(
                f"the run folder cannot be written: {error.strerror}",
                where=path.parent,
                hint="check rights and space",
            ) from error
        log.warning("this file system has no locks (%s): nothing keeps a second run out", error)
        yield
        return
    with lock:
        yield
