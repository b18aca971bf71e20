"""Failures of training workers: the record a failing worker leaves, when to restart, and the one error that
users read.

The first worker that fails writes `failure.json` into the stage's folder. Each restart by Ray Train is an
event of the stage.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from ray.train import ControllerError, UserCallback

from uniavgen.shards.errors import UserError
from uniavgen.train.checkpoint.run_folder import RunFolder
from uniavgen.train.config import TrainConfig

log = logging.getLogger(__name__)

CRASHED = "worker-failed"
"""Kind of a failure that a restart may survive; the other kinds need a person first."""

LOST_PEER = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
"""Texts of errors that only report the end of another worker."""

NO_ROOM = "WorkerGroupStartupTimeoutError"
"""Ray Train's error for a start without enough resources in time, by its name: the class is not public."""


def failure_path(folder: RunFolder) -> Path:
    """The file that the first failing worker writes."""
    return folder.path / "failure.json"


def record_failure(folder: RunFolder, error: Exception) -> None:
    """Write the error for the driver, unless there is a record or the error only reports a lost peer.

    If several workers fail at once, one complete record remains. If the disk refuses, this is logged, so that
    it does not hide the error that the worker raises next.
    """
    lost_a_peer = not isinstance(error, UserError) and any(sign in str(error) for sign in LOST_PEER)
    if lost_a_peer or failure_path(folder).exists():
        return
    if isinstance(error, UserError):
        record = {"what": error.what, "where": error.where, "hint": error.hint, "kind": error.kind}
    else:
        line = (str(error).strip().splitlines() or [""])[0]
        record = {
            "what": f"a training worker failed: {type(error).__name__}: {line}",
            "where": "",
            "hint": "",
            "kind": CRASHED,
        }
    part = failure_path(folder).with_name(f".failure-{uuid4().hex}.part")
    try:
        part.write_text(json.dumps(record) + "\n")
        os.replace(part, failure_path(folder))
    except OSError as refused:
        part.unlink(missing_ok=True)
        log.warning("the failure could not be recorded (%s): %s", refused, record["what"])


def read_failure(folder: RunFolder, raised: Mapping[int, Exception] | None = None) -> UserError | None:
    """The recorded failure, else the UserError that a worker raised (`raised`: by rank), else None."""
    path = failure_path(folder)
    if path.is_file():
        record = json.loads(path.read_text())
        where = record["where"] or folder.path
        return UserError(record["what"], where=where, hint=record["hint"], kind=record["kind"])
    return next((error for _, error in sorted((raised or {}).items()) if isinstance(error, UserError)), None)


def explain_lost_worker(folder: RunFolder, report: str) -> UserError:
    """The error for a worker that exited without a record, from Ray's report."""
    # of a long report, the line about the death says most, first of all if it names the node
    lines = [line.strip() for line in report.splitlines() if line.strip()]
    signs = ("died", "killed", "out of memory", "oom")
    deaths = [line for line in lines if any(sign in line.lower() for sign in signs)]
    deaths.sort(key=lambda line: "its node has died" not in line)
    # if nobody died, all failed in the same collective call, as NCCL does where a network is missing
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception): ", line)]
    reason = [
        *deaths,
        *errors,
        "worker exited without an error message, for example killed or out of memory",
    ][0]
    return UserError(
        f"a training worker was lost: {reason[:200]}",
        where=folder.path,
        hint="run the same command again: it resumes from the last checkpoint",
        kind="worker-lost",
    )


def explain_failure(folder: RunFolder, error: Exception, config: TrainConfig) -> UserError:
    """The one error to show: from the record of a worker, or else from what Ray Train raised."""
    failure = read_failure(folder, getattr(error, "worker_failures", None))
    if failure:
        return failure
    if isinstance(error, ControllerError) and type(error.controller_failure).__name__ == NO_ROOM:
        return UserError(
            f"the cluster had no resources for {config.workers} workers within {config.room_wait_s} s",
            where=folder.path,
            hint="add nodes or end other work and run the same command again, or lower train.workers",
            kind="too-small",
        )
    return explain_lost_worker(folder, str(error))


class RestartPolicy(UserCallback):
    """In Ray Train's controller: log every restart as an event, refuse those that would fail again."""

    def __init__(self, run_dir: str, stage: str, max_restarts: int) -> None:
        self.folder, self.max_restarts, self.count = RunFolder(run_dir, stage), max_restarts, 0

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        """Ray Train calls this before it decides about a restart.

        Raises UserError, which ends the run, for a failure that needs a person.
        """
        failure = read_failure(self.folder, worker_exceptions)
        if failure and failure.kind != CRASHED:
            raise failure
        self.count += 1
        if self.count > self.max_restarts:
            return
        reason = failure or explain_lost_worker(self.folder, "\n".join(map(str, worker_exceptions.values())))
        failure_path(self.folder).unlink(missing_ok=True)  # so that the next failure is recorded
        step = [0, *self.folder.steps()][-1]
        text = (
            f"{reason.what}; restart {self.count} of {self.max_restarts} from step {step}, "
            "once there are resources for all workers"
        )
        self.folder.log_event("restart", text, step=step)
