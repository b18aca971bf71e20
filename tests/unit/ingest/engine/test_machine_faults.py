"""Which failures are the machine's: single errors, and the first sources of a run together."""

import errno
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uniavgen.ingest.engine.machine_faults import FEWEST, FIRST, Suspicion, machine_fault
from uniavgen.ingest.records import Failure, SourceRecord
from uniavgen.shards.errors import UserError

SOURCE = "/videos/a.mp4"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/dev/shm/torch_1"), "no-space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "no-space"),
        (RuntimeError("unable to write: No space left on device"), "no-space"),
        (UserError("full", kind="no-space"), "no-space"),
        (OSError(errno.EMFILE, "Too many open files"), "machine-fault"),
        (OSError(errno.ENOEXEC, "Exec format error", "/opt/ffmpeg"), "machine-fault"),
        (OSError(errno.EROFS, "Read-only file system", "/tmp/x"), "machine-fault"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "machine-fault"),
        (PermissionError(errno.EACCES, "Permission denied", "/tmp/x"), "machine-fault"),
        (PermissionError(errno.EACCES, "Permission denied", SOURCE), ""),
        (PermissionError(errno.EACCES, "Permission denied", SOURCE.encode()), ""),
        (PermissionError("not yours"), ""),
        (ImportError("libGL.so.1: cannot open shared object file"), "machine-fault"),
        (ModuleNotFoundError("No module named 'mediapipe'"), "machine-fault"),
        (RuntimeError("can't start new thread"), "machine-fault"),
        (UserError("ffmpeg does not start", kind="broken-ffmpeg"), "machine-fault"),
        (UserError("no picture", kind="decode-failed"), ""),
        (UserError("no German model", kind="missing-weights"), ""),
        (FileNotFoundError(errno.ENOENT, "No such file", SOURCE), ""),
        (ZeroDivisionError("by zero"), ""),
        (MemoryError(), ""),
    ],
)
def test_errors_of_the_machine_are_told_from_those_of_a_source(error: Exception, expected: str) -> None:
    assert machine_fault(error, SOURCE) == expected


def test_model_that_cannot_be_loaded_is_a_fault_of_the_machine() -> None:
    for error in (UserError("gone", kind="missing-weights"), RuntimeError("bad file"), MemoryError()):
        assert machine_fault(error, SOURCE, loading=True) == "machine-fault"


def record(kind: str, step: str = "faces") -> SourceRecord:
    ended = SourceRecord(SOURCE, "ab" * 16)
    ended.failure = Failure(step, kind, "text") if kind else None
    return ended


def committed(kinds: list[str], root: Path) -> int | None:
    """Records that a run would commit; None if it was stopped."""
    suspicion, admitted = Suspicion(root), 0
    try:
        for kind in kinds:
            admitted += len(suspicion.admit(record(kind)))
        return admitted + len(suspicion.end())
    except UserError as error:
        return None if error.kind == "machine-fault" and "\n" not in str(error) else -1


OUTCOMES = ("", "decode-failed", "worker-died", "prober-died", "RuntimeError")


@given(st.lists(st.sampled_from(OUTCOMES), max_size=2 * FIRST))
def test_first_sources_that_all_fail_alike_stop_the_run(kinds: list[str]) -> None:
    same = next((index for index, kind in enumerate(kinds) if kind != kinds[0]), len(kinds))
    unclear = bool(kinds) and kinds[0] in OUTCOMES[2:]
    stops = unclear and (same >= FIRST or (same == len(kinds) and same >= FEWEST))
    assert committed(kinds, Path("/")) == (None if stops else len(kinds))


@pytest.mark.parametrize("position", [0, 5])
def test_machine_fault_stops_the_run_at_any_time(position: int, tmp_path: Path) -> None:
    suspicion = Suspicion(tmp_path)
    for _ in range(position):
        assert len(suspicion.admit(record(""))) == 1
    with pytest.raises(UserError, match="this machine cannot measure: text .*no source was charged"):
        suspicion.admit(record("machine-fault"))
    with pytest.raises(UserError, match="no space: text .*TMPDIR and /dev/shm"):
        suspicion.admit(record("no-space"))


def test_duplicates_neither_clear_nor_convict() -> None:
    assert committed(["worker-died", "duplicate"] * (FIRST - 1), Path("/")) is None
    assert committed(["worker-died", "duplicate", "worker-died"], Path("/")) == 3
