"""What a failing worker leaves behind, which failures are worth another start, and the line that people read in the end."""

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
from uniavgen.train.planning import out_of_memory

NODE_DIED = """Training failed due to worker errors:
[Rank 1 Error Snippet]:
A worker health check failed.
Worker info: Worker(actor=Actor(RayTrainWorker, 1f), metadata=ActorMetadata(hostname='a'))
The actor died unexpectedly before finishing this task.
\tclass_name: RayTrainWorker
\tip: 10.0.0.7
The actor died because its node has died. Node Id: 8ce1
"""
"""What Ray reports of a node that went away, shortened."""


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path, "joint")
    made.write(done=False)
    return made


def restarts_told(folder: RunFolder) -> list[dict[str, Any]]:
    lines = folder.events.read_text().splitlines() if folder.events.is_file() else []
    return [json.loads(line) for line in lines if json.loads(line)["event"] == "restart"]


def test_the_first_worker_to_fail_is_heard_and_those_that_lost_it_are_not(folder: RunFolder) -> None:
    from uniavgen.train.engine.failures import heard, leave_word, told

    leave_word(folder, RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"))
    assert heard(folder) is None
    leave_word(folder, UserError("the disk is full", where="/run", hint="free space", kind="save-failed"))
    leave_word(folder, ValueError("a later one"))
    assert str(told(folder, RuntimeError(NODE_DIED), TrainConfig())) == "the disk is full (/run); free space"


def test_of_workers_that_fail_at_once_one_is_heard_whole(folder: RunFolder) -> None:
    from uniavgen.train.engine.failures import heard, leave_word

    errors = [UserError("x" * 10**length, kind="diverged") for length in (1, 3, 5)]
    for _ in range(20):
        (folder.path / "failure.json").unlink(missing_ok=True)
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda error: leave_word(folder, error), errors))
        word = heard(folder)
        assert word
        assert word.what in [error.what for error in errors]
    assert sorted(path.name for path in folder.path.iterdir()) == ["failure.json", "stage.json"]


def test_a_disk_that_takes_no_word_hides_no_failure(folder: RunFolder) -> None:
    """As where it filled up during a save: then Ray's own report has the error."""
    from ray.train import WorkerGroupError

    from uniavgen.train.engine.failures import Restarts, heard, leave_word, told

    full = UserError("checkpoint 4 cannot be written", where="/run", hint="free space", kind="save-failed")
    shutil.rmtree(folder.path)
    leave_word(folder, full)
    assert heard(folder) is None
    raised = {0: RuntimeError("Connection closed by peer"), 1: full}
    assert told(folder, WorkerGroupError("[Rank 1]: Traceback ...", raised), TrainConfig()) is full
    with pytest.raises(UserError, match="cannot be written"):
        Restarts(str(folder.path.parent), "joint", 5).after_exception(None, raised)


def test_workers_that_never_met_are_told_by_the_librarys_error(folder: RunFolder) -> None:
    """All of them fail in the same call to one another, so none leaves a word, and nobody died."""
    from uniavgen.train.engine.failures import leave_word, lost

    error = "torch.distributed.DistBackendError: NCCL error in: NCCLUtils.cpp:94, unhandled system error"
    leave_word(folder, RuntimeError(error))
    report = f"[Rank 0 Error Snippet]:\nTraceback (most recent call last):\n  File x\n{error}\nLast error:\nno socket"
    assert lost(folder, report).what == f"a training worker was lost: {error}"
    assert "without a word" in lost(folder, "").what


def test_a_crash_is_tried_again_as_often_as_allowed_and_its_last_word_stays(folder: RunFolder) -> None:
    from uniavgen.train.engine.failures import Restarts, heard, leave_word

    restarts = Restarts(str(folder.path.parent), "joint", 2)
    for number in (1, 2, 3):
        leave_word(folder, ValueError(f"crash {number}"))
        restarts.after_exception(None, {0: ValueError(f"crash {number}")})
    assert [event["text"].partition(";")[0] for event in restarts_told(folder)] == [
        "a training worker failed: ValueError: crash 1",
        "a training worker failed: ValueError: crash 2",
    ]
    assert "restart 2 of 2, from step 0" in restarts_told(folder)[1]["text"]
    word = heard(folder)
    assert word
    assert word.what.endswith("crash 3")


def test_what_a_person_must_put_right_is_not_tried_again(folder: RunFolder) -> None:
    """PyTorch's own error for memory that is not there, told with what would fit."""
    import torch

    from uniavgen.train.engine.failures import Restarts, leave_word

    config = load_config("laptop").train
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55, dtype=torch.uint8)
    told = out_of_memory(caught.value, config, config.stage("joint"), "cpu")
    assert told
    leave_word(folder, told)
    with pytest.raises(
        UserError, match=r"stage joint ran out of memory on a cpu worker \(train.stages.joint\); "
    ) as refused:
        Restarts(str(folder.path.parent), "joint", 5).after_exception(None, {1: caught.value})
    assert refused.value.hint
    assert restarts_told(folder) == []


def test_a_lost_node_is_told_by_rays_line_about_it(folder: RunFolder) -> None:
    from uniavgen.train.engine.failures import Restarts, told

    line = str(told(folder, RuntimeError(NODE_DIED), TrainConfig()))
    assert line.startswith(
        "a training worker was lost: The actor died because its node has died. Node Id: 8ce1 ("
    )
    assert line.endswith("run the same command again: it goes on from the last checkpoint")
    Restarts(str(folder.path.parent), "joint", 1).after_exception(None, {1: RuntimeError(NODE_DIED)})
    (event,) = restarts_told(folder)
    assert "its node has died. Node Id: 8ce1; restart 1 of 1" in event["text"]


def test_a_cluster_without_room_is_told_with_what_was_waited_for(folder: RunFolder) -> None:
    from ray.train import ControllerError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    from uniavgen.train.engine.failures import told

    config = TrainConfig(workers=8, room_wait_s=60)
    line = str(told(folder, ControllerError(WorkerGroupStartupTimeoutError(8)), config))
    assert line.startswith("the cluster had no room for 8 workers within 60 s (")
    assert line.endswith("or go on with fewer train.workers")
