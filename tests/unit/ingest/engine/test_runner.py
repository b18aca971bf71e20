"""Running steps on one source: errors become failures, results are stored and reused."""

import errno
from pathlib import Path

import pytest

from uniavgen.ingest.config import IngestConfig
from uniavgen.ingest.engine.progress import RunState
from uniavgen.ingest.engine.runner import Runner
from uniavgen.ingest.engine.step import Step, StepGraph
from uniavgen.ingest.records import Failure, LocalCopy, Proposals, SourceRecord
from uniavgen.shards.errors import UserError


class ProposeOnce(Step):
    name = "propose"
    pool = "sight"
    version = "1"
    result = Proposals
    calls = 0
    error: Exception | None = None

    def measure(self, record: SourceRecord) -> Proposals:
        type(self).calls += 1
        if self.error is not None:
            raise self.error
        return Proposals([])


class CountClips(Step):
    name = "measure"
    pool = "sight"
    version = "1"
    needs = ("propose",)
    result = LocalCopy

    def measure(self, record: SourceRecord) -> LocalCopy:
        return LocalCopy(str(len(record.result(Proposals).clips)))


def run(folder: Path, uri: Path, error: Exception | None = None) -> tuple[SourceRecord, RunState]:
    ProposeOnce.calls, ProposeOnce.error = 0, error
    graph = StepGraph((ProposeOnce, CountClips), IngestConfig())
    state = RunState(list(graph.by_name))
    record = Runner(graph, ("sight",), folder, folder, state).run(SourceRecord(str(uri), "ab" * 16))
    return record, state


def test_stored_results_are_reused(tmp_path: Path) -> None:
    video = tmp_path / "a.mp4"
    video.touch()
    _, state = run(tmp_path, video)
    assert [(step.done, step.reused) for step in state.totals().values()] == [(1, 0), (1, 0)]
    _, state = run(tmp_path, video)
    assert [(step.done, step.reused) for step in state.totals().values()] == [(0, 1), (0, 1)]
    assert ProposeOnce.calls == 0


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (UserError("bad", kind="cut-failed"), "cut-failed"),
        (OSError(errno.ENOSPC, "No space left on device"), "no-space"),
        (UserError("decoding failed: No space left on device", kind="decode-failed"), "no-space"),
        (PermissionError("not yours"), "PermissionError"),
        (PermissionError(errno.EACCES, "not yours", "/dev/shm"), "machine-fault"),
        (ImportError("libGL.so.1: cannot open shared object file"), "machine-fault"),
        (ZeroDivisionError("by zero"), "ZeroDivisionError"),
    ],
)
def test_error_becomes_failure_and_later_steps_do_not_run(
    tmp_path: Path, error: Exception, kind: str
) -> None:
    video = tmp_path / "a.mp4"
    video.touch()
    record, state = run(tmp_path, video, error)
    assert record.failure is not None
    assert (record.failure.stage, record.failure.error_type) == ("propose", kind)
    assert (state.totals()["propose"].failed, state.totals()["measure"].done) == (1, 0)


def test_error_on_missing_file_is_vanished(tmp_path: Path) -> None:
    error = UserError("broken pipe", kind="decode-failed")
    record, _ = run(tmp_path, tmp_path / "missing.mp4", error)
    assert record.failure is not None
    assert record.failure.error_type == "vanished"
    assert "--retry" in record.failure.message


def test_record_is_sent_without_results() -> None:
    failure = Failure("probe", "not-a-video", "no video")
    sent = SourceRecord(
        "/videos/a.mp4", "a", "1", 100, failure, {"c": failure}, {"cut": 1.5}, {Proposals: Proposals([])}
    )
    received = SourceRecord.from_json(sent.to_json())
    assert not received.results
    sent.results = {}
    assert received == sent
    with pytest.raises(KeyError):
        received.result(LocalCopy)
