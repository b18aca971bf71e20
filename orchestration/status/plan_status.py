"""State of a plan: its steps, and what the running one has done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uniavgen.orchestration.plan_runs.plan_file import STATE_FOLDER, Plan, read_plan
from uniavgen.orchestration.plan_runs.state import Finished, PlanState
from uniavgen.orchestration.plan_runs.steps import STEPS
from uniavgen.orchestration.status.corpus_status import corpus_status
from uniavgen.orchestration.status.run_status import run_status
from uniavgen.shards.errors import UserError
from uniavgen.shards.heartbeat import Beat, read_beat

STEP_NAMES = [step.name for step in STEPS]
DETAILS = {"ingest": "corpus", "train": "run"}
"""Steps whose own status is shown while they run."""


def find_plan(path: Path) -> Plan:
    """The plan in a file, or the last one that ran in a folder. Raises UserError if there is none."""
    if path.is_file():
        return read_plan(path)
    for folder in (path, path / STATE_FOLDER):
        stored = sorted((folder / "runs").glob("*.yaml"))
        if stored:
            return read_plan(stored[-1])
    raise UserError(
        "no plan here", where=path, hint="name a plan file, or the folder that its `folder` names"
    )


def plan_status(path: Path, names: Sequence[str] = STEP_NAMES) -> dict[str, Any]:
    """Each step of a plan: state, seconds, done and left; alive or dead and since when.

    `path`: a plan file, or the folder of a plan. `names`: the steps that there are.
    """
    plan = find_plan(path)
    state = PlanState(plan.state_folder)
    beat = read_beat(state.alive)
    process = beat.describe() if beat else {"state": "not running"}
    events = state.events()
    steps = [
        step_status(name, state.finished(name), _last(events, name), beat)
        for name in names
        if plan.steps.options(name) is not None
    ]
    document = {"plan": plan.name, "folder": str(plan.folder), **process, "steps": steps}
    document["failures"] = dict(Counter(row["kind"] for row in events if row["event"] == "failed"))
    current = next((step["step"] for step in steps if step["state"] in ("running", "interrupted")), "")
    if detail := DETAILS.get(current):
        document[detail] = _detail(detail, plan)
    return document


def step_status(
    name: str, record: Finished | None, last: Mapping[str, Any], beat: Beat | None
) -> dict[str, Any]:
    """One step: done, running, interrupted, failed, stopped or waiting; with progress while it runs."""
    if record is not None:
        return {"step": name, "state": "done", "at": record.at, "seconds": record.seconds}
    if not last:
        return {"step": name, "state": "waiting"}
    status = {"step": name, "at": last["time"]}
    if last["event"] != "start":
        return status | {"state": str(last["event"]), "message": last.get("message", "")}
    alive = beat is not None and beat.is_alive()
    content = beat.content if beat and beat.content.get("step") == name else {}
    return status | {"state": "running" if alive else "interrupted"} | _progress(content, alive=alive)


def _progress(content: Mapping[str, Any], *, alive: bool) -> dict[str, Any]:
    """Done, left, rate and time left of the progress line that a step shows."""
    total, done = content.get("total"), content.get("done")
    if done is None or not total:
        return {}
    rate = content.get("rate")
    left_s = (total - done) / rate if rate and alive else None
    return {
        "doing": content.get("label", ""),
        "done": done,
        "left": total - done,
        "rate": rate,
        "time_left_s": left_s,
    }


def _detail(kind: str, plan: Plan) -> dict[str, Any]:
    """Status of the corpus or of the training; {} before it exists."""
    try:
        return corpus_status(plan.corpus) if kind == "corpus" else run_status(plan.run)
    except UserError:
        return {}


def _last(events: Sequence[Mapping[str, Any]], step: str) -> Mapping[str, Any]:
    return next((row for row in reversed(events) if row.get("step") == step), {})
