"""What becomes of a failing training worker: the word that it leaves, another start, or the one line that people read.

In: the stage's folder, and what workers and Ray Train raise. Out: `failure.json` from the first worker that fails, an event for
each time that Ray starts the workers again, and at the end of it a UserError.
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
"""Kind of a failure that another start may well survive; of the others, a person must put something right first."""

LOST_PEER = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
"""What errors say that only tell of another worker's end."""

NO_ROOM = "WorkerGroupStartupTimeoutError"
"""Ray Train's error for a start that found no room in time, by its name: its class is not public."""


def failure_path(folder: RunFolder) -> Path:
    """Where the first worker that fails leaves word."""
    return folder.path / "failure.json"


def leave_word(folder: RunFolder, error: Exception) -> None:
    """Note the error for the driver. The first worker to fail is heard; the others only lost their connection to it.

    Of several that fail at once any one is heard, and whole. A disk that does not take the word is logged: the error that the
    worker goes on to raise must not be hidden by that.
    """
    lost_a_peer = not isinstance(error, UserError) and any(sign in str(error) for sign in LOST_PEER)
    if lost_a_peer or failure_path(folder).exists():
        return
    if isinstance(error, UserError):
        word = {"what": error.what, "where": error.where, "hint": error.hint, "kind": error.kind}
    else:
        line = (str(error).strip().splitlines() or [""])[0]
        word = {
            "what": f"a training worker failed: {type(error).__name__}: {line}",
            "where": "",
            "hint": "",
            "kind": CRASHED,
        }
    own = failure_path(folder).with_name(f".failure-{uuid4().hex}.part")
    try:
        own.write_text(json.dumps(word) + "\n")
        os.replace(own, failure_path(folder))
    except OSError as refused:
        own.unlink(missing_ok=True)
        log.warning("no word could be left of %s: %s", word["what"], refused)


def heard(folder: RunFolder, raised: Mapping[int, Exception] | None = None) -> UserError | None:
    """What the first worker to fail left word of, else what Ray has of its error; None where neither says anything.

    `raised`: by rank, what the workers raised.
    """
    path = failure_path(folder)
    if path.is_file():
        word = json.loads(path.read_text())
        return UserError(
            word["what"], where=word["where"] or folder.path, hint=word["hint"], kind=word["kind"]
        )
    return next((error for _, error in sorted((raised or {}).items()) if isinstance(error, UserError)), None)


def lost(folder: RunFolder, report: str) -> UserError:
    """A worker that ended without a word, by Ray's report on it."""
    # the report is long; its line about the death says the most, and one that names the node more than one that does not
    lines = [line.strip() for line in report.splitlines() if line.strip()]
    dead = [
        line
        for line in lines
        if any(word in line.lower() for word in ("died", "killed", "out of memory", "oom"))
    ]
    dead.sort(key=lambda line: "its node has died" not in line)
    # where nobody died, all failed in the same call to one another, as in NCCL where a network is missing
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception): ", line)]
    died = [*dead, *errors, "its process ended without a word, as when it is killed or memory runs out"][0]
    return UserError(
        f"a training worker was lost: {died[:200]}",
        where=folder.path,
        hint="run the same command again: it goes on from the last checkpoint",
        kind="worker-lost",
    )


def told(folder: RunFolder, error: Exception, config: TrainConfig) -> UserError:
    """One clear line out of what the workers left or, where they could leave nothing, out of what Ray Train raised."""
    word = heard(folder, getattr(error, "worker_failures", None))
    if word:
        return word
    if isinstance(error, ControllerError) and type(error.controller_failure).__name__ == NO_ROOM:
        return UserError(
            f"the cluster had no room for {config.workers} workers within {config.room_wait_s} s",
            where=folder.path,
            hint="bring nodes back or end other work, and run the same command again; or go on with fewer train.workers",
            kind="too-small",
        )
    return lost(folder, str(error))


class Restarts(UserCallback):
    """Stands in Ray Train's controller: tells of every restart, and refuses those that would only fail again."""

    def __init__(self, run_dir: str, stage: str, allowed: int) -> None:
        self.folder, self.allowed, self.count = RunFolder(run_dir, stage), allowed, 0

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        """Ray Train calls this before it decides about a restart. Raises UserError, which ends the run, for a failure that a
        person must put right."""
        word = heard(self.folder, worker_exceptions)
        if word and word.kind != CRASHED:
            raise word
        self.count += 1
        if self.count > self.allowed:
            return
        reason = word or lost(self.folder, "\n".join(map(str, worker_exceptions.values())))
        failure_path(self.folder).unlink(missing_ok=True)  # the next failure leaves a word of its own
        step = [0, *self.folder.steps()][-1]
        again = (
            f"restart {self.count} of {self.allowed}, from step {step}, once there is room for all workers"
        )
        self.folder.tell("restart", f"{reason.what}; {again}", step=step)
