"""Tell a fault of the machine from one of a source. A machine's fault ends the run; no source is charged.

A full disk, a missing library, too many open files, or a model that cannot be loaded would fail every source.
They stop the run at once, in one line. What looks like a source's fault once, as a worker that dies, is the
machine's if the first sources of a run all end so.
"""

from __future__ import annotations

import errno
import os
import platform
import shutil
from pathlib import Path

from uniavgen.ingest.records import DUPLICATE, Failure, SourceRecord
from uniavgen.shards.errors import UserError

NO_SPACE, MACHINE = "no-space", "machine-fault"
"""Kinds of failure that stop a run."""

FULL = (errno.ENOSPC, errno.EDQUOT)

ERRNOS = (errno.EMFILE, errno.ENFILE, errno.ENOEXEC, errno.EROFS, errno.ELIBACC, errno.ELIBBAD, errno.EAGAIN)
"""Errors of the system that no source causes."""

OWN_ERRNOS = (errno.EACCES, errno.EPERM)
"""Errors of the system that are the source's if they name its file, else the machine's."""

SIGNS = (
    "error while loading shared libraries",
    "cannot open shared object file",
    "Exec format error",
    "Too many open files",
    "can't start new thread",
)
"""Messages of the dynamic loader and of libraries for the same faults."""

BROKEN = ("no-ffmpeg", "broken-ffmpeg")
"""Kinds of UserError that are the machine's."""

UNCLEAR = ("worker-died", "prober-died")
"""Failures that either may cause, beside unexpected exceptions, whose kind is the name of their class."""

FIRST = 8
"""Sources that must all fail in one unclear way, before any other ends, to stop a run. Heuristic."""

FEWEST = 3
"""The same for a run that has no more sources. Heuristic."""

ROOM_BYTES = 64 * 2**20
"""Free space of the corpus's disk from which another place is the one that is full. Heuristic."""


def machine_fault(error: Exception, source: str | None, *, loading: bool = False) -> str:
    """NO_SPACE or MACHINE if an exception is the machine's fault, else "". `source`: path of a local source.

    `loading`: the exception came while models were loaded.
    """
    text, number = str(error), getattr(error, "errno", None)
    kind = error.kind if isinstance(error, UserError) else ""
    if number in FULL or kind == NO_SPACE or "No space left on device" in text:
        return NO_SPACE
    if loading or kind in BROKEN or number in ERRNOS or isinstance(error, ImportError):
        return MACHINE
    if number in OWN_ERRNOS:
        name = getattr(error, "filename", None)
        return MACHINE if name is not None and os.fsdecode(name) != source else ""
    return MACHINE if any(sign in text for sign in SIGNS) else ""


class Suspicion:
    """Looks at the sources of a run as they end, and stops it where the machine is at fault."""

    def __init__(self, corpus_root: Path) -> None:
        self._corpus_root = corpus_root
        self._held: list[SourceRecord] = []
        self._trusts = False

    def admit(self, record: SourceRecord) -> list[SourceRecord]:
        """Records that may be committed now. Raises UserError (no-space, machine-fault)."""
        failure = record.failure
        if failure is not None and failure.error_type in (NO_SPACE, MACHINE):
            raise stopping_error(failure, self._corpus_root)
        if self._trusts or (failure is not None and failure.error_type == DUPLICATE):
            return [record]
        self._held.append(record)
        if failure is None or not _is_unclear(failure) or _cause(failure) != self._cause():
            return self._release()
        if len(self._held) >= FIRST:
            raise self._all_failed(failure)
        return []

    def end(self) -> list[SourceRecord]:
        """The records that were held back until the end of the run. Raises UserError (machine-fault)."""
        if len(self._held) >= FEWEST and self._held[0].failure is not None:
            raise self._all_failed(self._held[0].failure)
        return self._release()

    def _cause(self) -> tuple[str, str]:
        first = self._held[0].failure
        assert first is not None
        return _cause(first)

    def _release(self) -> list[SourceRecord]:
        self._trusts = True
        released, self._held = self._held, []
        return released

    def _all_failed(self, failure: Failure) -> UserError:
        return UserError(
            f"the first {len(self._held)} sources all failed in step {failure.stage} ({failure.error_type}), "
            f"none succeeded: {failure.message}",
            where=platform.node(),
            hint="see uniavgen doctor; if the sources are at fault, begin with others",
            kind=MACHINE,
        )


def stopping_error(failure: Failure, corpus_root: Path) -> UserError:
    """The error with which a run stops. No source is charged."""
    if failure.error_type == MACHINE:
        return UserError(
            f"this machine cannot measure: {failure.message}",
            where=platform.node(),
            hint="repair it (uniavgen doctor) and run again: no source was charged",
            kind=MACHINE,
        )
    if shutil.disk_usage(corpus_root).free > ROOM_BYTES:
        hint = "free space in TMPDIR and /dev/shm, and run again"
        return UserError(f"no space: {failure.message}", where=platform.node(), hint=hint, kind=NO_SPACE)
    return disk_full(corpus_root)


def disk_full(corpus_root: Path) -> UserError:
    return UserError(
        "the disk is full", where=corpus_root, hint="free some space and run again", kind=NO_SPACE
    )


def _cause(failure: Failure) -> tuple[str, str]:
    return failure.stage, failure.error_type


def _is_unclear(failure: Failure) -> bool:
    return failure.error_type in UNCLEAR or failure.error_type[:1].isupper()
