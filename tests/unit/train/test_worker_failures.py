"""Failing workers: what they record, which failures restart, and the error that users read."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from uniavgen.orchestration.config import load_config
from uniavgen.shards.errors import UserError
from uniavgen.train.checkpoint.run_folder import RunFolder
from uniavgen.train.config import TrainConfig
from uniavgen.train.planning import explain_out_of_memory

NODE_DIED = """Training failed due to worker errors:
[Rank 1 Error Snippet]:
A worker health check failed.
Worker info: Worker(actor=Actor(RayTrainWorker, 1f), metadata=ActorMetadata(hostname='a'))
The actor died unexpectedly before finishing this task.
\tclass_name: RayTrainWorker
\tip: 10.0.0.7
The actor died because its node has died. Node Id: 8ce1
"""
"""Ray's report of a lost node, shortened."""


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path, "joint")
    made.write(done=False)
    return made


def restart_events(folder: RunFolder) -> list[dict[str, Any]]:
    lines = folder.events.read_text().splitlines() if folder.events.is_file() else []
    return [json.loads(line) for line in lines if json.loads(line)["event"] == "restart"]


def test_first_failure_is_kept_and_lost_peer_errors_are_ignored(folder: RunFolder) -> None:
    from uniavgen.train.worker_failures import explain_failure, read_failure, record_failure

    record_failure(folder, RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"))
    assert read_failure(folder) is None
    record_failure(folder, UserError("the disk is full", where="/run", hint="free space", kind="save-failed"))
    record_failure(folder, ValueError("a later one"))
    assert (
        str(explain_failure(folder, RuntimeError(NODE_DIED), TrainConfig()))
        == "the disk is full (/run); free space"
    )


def test_concurrent_failures_leave_one_complete_record(folder: RunFolder) -> None:
    from uniavgen.train.worker_failures import read_failure, record_failure

    errors = [UserError("x" * 10**length, kind="diverged") for length in (1, 3, 5)]
    for _ in range(20):
        (folder.path / "failure.json").unlink(missing_ok=True)
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda error: record_failure(folder, error), errors))
        failure = read_failure(folder)
        assert failure
        assert failure.what in [error.what for error in errors]
    assert sorted(path.name for path in folder.path.iterdir()) == ["failure.json", "stage.json"]


def test_failure_is_reported_when_disk_refuses_the_record(folder: RunFolder) -> None:
    """As when it filled up during a save: Ray's own report then has the error."""
    from ray.train import WorkerGroupError

    from uniavgen.train.worker_failures import RestartPolicy, explain_failure, read_failure, record_failure

    full = UserError("checkpoint 4 cannot be written", where="/run", hint="free space", kind="save-failed")
    shutil.rmtree(folder.path)
    record_failure(folder, full)
    assert read_failure(folder) is None
    raised = {0: RuntimeError("Connection closed by peer"), 1: full}
    assert explain_failure(folder, WorkerGroupError("[Rank 1]: Traceback ...", raised), TrainConfig()) is full
    with pytest.raises(UserError, match="cannot be written"):
        RestartPolicy(str(folder.path.parent), "joint", 5).after_exception(None, raised)


def test_failed_collective_is_reported_with_library_error(folder: RunFolder) -> None:
    """All fail in the same collective call: none writes a record, and none died."""
    from uniavgen.train.worker_failures import explain_lost_worker, record_failure

    error = "torch.distributed.DistBackendError: NCCL error in: NCCLUtils.cpp:94, unhandled system error"
    record_failure(folder, RuntimeError(error))
    report = f"[Rank 0 Error Snippet]:\nTraceback (most recent call last):\n  File x\n{error}\n"
    report += "Last error:\nno socket"
    assert explain_lost_worker(folder, report).what == f"a training worker was lost: {error}"
    assert "without an error message" in explain_lost_worker(folder, "").what


def test_crash_restarts_up_to_limit_and_last_record_stays(folder: RunFolder) -> None:
    from uniavgen.train.worker_failures import RestartPolicy, read_failure, record_failure

    restarts = RestartPolicy(str(folder.path.parent), "joint", 2)
    for number in (1, 2, 3):
        record_failure(folder, ValueError(f"crash {number}"))
        restarts.after_exception(None, {0: ValueError(f"crash {number}")})
    assert [event["text"].partition(";")[0] for event in restart_events(folder)] == [
        "a training worker failed: ValueError: crash 1",
        "a training worker failed: ValueError: crash 2",
    ]
    assert "restart 2 of 2 from step 0" in restart_events(folder)[1]["text"]
    failure = read_failure(folder)
    assert failure
    assert failure.what.endswith("crash 3")


def test_user_error_is_not_restarted(folder: RunFolder) -> None:
    """PyTorch's out-of-memory error, with settings that would fit."""
    import torch

    from uniavgen.train.worker_failures import RestartPolicy, record_failure

    config = load_config("laptop").train
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55, dtype=torch.uint8)
    explained = explain_out_of_memory(caught.value, config, config.stage("joint"), "cpu")
    assert explained
    record_failure(folder, explained)
    with pytest.raises(
        UserError, match=r"stage joint ran out of memory on a cpu worker \(train.stages.joint\); "
    ) as refused:
        RestartPolicy(str(folder.path.parent), "joint", 5).after_exception(None, {1: caught.value})
    assert refused.value.hint
    assert restart_events(folder) == []


def test_lost_node_is_reported_with_rays_line(folder: RunFolder) -> None:
    from uniavgen.train.worker_failures import RestartPolicy, explain_failure

    line = str(explain_failure(folder, RuntimeError(NODE_DIED), TrainConfig()))
    assert line.startswith(
        "a training worker was lost: The actor died because its node has died. Node Id: 8ce1 ("
    )
    assert line.endswith("run the same command again: it resumes from the last checkpoint")
    RestartPolicy(str(folder.path.parent), "joint", 1).after_exception(None, {1: RuntimeError(NODE_DIED)})
    (event,) = restart_events(folder)
    assert "its node has died. Node Id: 8ce1; restart 1 of 1" in event["text"]


def test_cluster_without_resources_reports_wait_time(folder: RunFolder) -> None:
    from ray.train import ControllerError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    from uniavgen.train.worker_failures import explain_failure

    config = TrainConfig(workers=8, room_wait_s=60)
    line = str(explain_failure(folder, ControllerError(WorkerGroupStartupTimeoutError(8)), config))
    assert line.startswith("the cluster had no resources for 8 workers within 60 s (")
    assert line.endswith("or lower train.workers")
