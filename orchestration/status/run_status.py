"""State of a training run, by stage."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from uniavgen.shards.errors import UserError
from uniavgen.shards.heartbeat import read_beat
from uniavgen.shards.jsonl import read_rows
from uniavgen.train.checkpoint.run_folder import MANIFEST, RunFolder
from uniavgen.train.checkpoint.run_lock import ALIVE_FILE

TAIL_BYTES = 2**18
"""End of a metrics file that is read."""
RATE_ROWS = 50
"""Latest steps whose mean time is the rate. Heuristic."""


def run_status(run_dir: Path) -> dict[str, Any]:
    """Each stage of a run, and whether a command trains in it. Raises UserError if there is no run."""
    folders = stage_folders(run_dir)
    beat = read_beat(run_dir / ALIVE_FILE)
    if not folders and not beat:
        raise UserError(
            "no training run here", where=run_dir, hint="name a folder that `uniavgen train --run` has made"
        )
    process = beat.describe() if beat else {"state": "not running"}
    training = process["state"] == "alive"
    stages = [stage_status(folder, training=training) for folder in folders]
    return {"run": str(run_dir.absolute()), **process, "stages": stages}


def stage_folders(run_dir: Path) -> list[RunFolder]:
    """The folders of the stages that have begun, in the order in which they are configured."""
    begun = {path.parent.name: RunFolder(run_dir, path.parent.name) for path in run_dir.glob("*/stage.json")}
    order: list[str] = []
    for folder in begun.values():
        configured = folder.read().get("config", {}).get("stages", [])
        order = max(order, [str(stage["name"]) for stage in configured], key=len)
    return sorted(begun.values(), key=lambda folder: [*order, folder.stage].index(folder.stage))


def stage_status(folder: RunFolder, *, training: bool) -> dict[str, Any]:
    """Steps done and left, rate, time left, losses, events by kind, last checkpoint.

    `training`: whether a command works in the run folder; only then is there a time left.
    """
    state = folder.read()
    configured = {str(s["name"]): s for s in state.get("config", {}).get("stages", [])}
    total = int(configured.get(folder.stage, {}).get("steps", 0))
    rows = latest_steps(folder.path / "metrics.jsonl")
    step = total if folder.done else int(rows[-1]["step"]) if rows else 0
    rate = steps_per_s(rows)
    checkpoints = folder.steps()
    left_s = (total - step) / rate if rate and training and not folder.done else None
    return {
        "stage": folder.stage,
        "state": "done" if folder.done else "begun",
        "done": step,
        "left": max(0, total - step),
        "steps_per_s": rate,
        "time_left_s": left_s,
        "ends_at": time.time() + left_s if left_s is not None else None,
        "last_step_at": rows[-1]["time"] if rows else None,
        "loss": rows[-1].get("loss/total") if rows else None,
        "checkpoint": checkpoints[-1] if checkpoints else None,
        "checkpoint_at": (
            (folder.checkpoint(checkpoints[-1]) / MANIFEST).stat().st_mtime if checkpoints else None
        ),
        "events": dict(Counter(str(row.get("event")) for row in read_rows(folder.events).rows)),
    }


def latest_steps(log: Path) -> list[dict[str, Any]]:
    """The last training steps that a metrics file holds. A step that was repeated counts once."""
    if not log.is_file():
        return []
    rows = read_rows(log, max(0, log.stat().st_size - TAIL_BYTES)).rows
    steps: list[dict[str, Any]] = []
    for row in rows:
        if "loss/total" not in row or "time" not in row:
            continue
        while steps and steps[-1]["step"] >= row["step"]:
            steps.pop()  # training went back to a checkpoint
        steps.append(row)
    return steps[-RATE_ROWS:]


def steps_per_s(rows: Sequence[dict[str, Any]]) -> float | None:
    """Mean rate over these steps; None with fewer than two."""
    if len(rows) < 2:
        return None
    seconds = rows[-1]["time"] - rows[0]["time"]
    return (rows[-1]["step"] - rows[0]["step"]) / seconds if seconds > 0 else None
