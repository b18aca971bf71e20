"""Run the steps of a plan in order, and record each one.

A step's record is removed before it runs and written after it finished. So a process that is killed at any
moment leaves at most one step to run again, and the commands themselves repeat nothing that they had done.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, chdir
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniavgen.orchestration.output import console
from uniavgen.orchestration.plan_runs.decide import Decision, decide, decide_all, select
from uniavgen.orchestration.plan_runs.plan_file import resolved
from uniavgen.orchestration.plan_runs.state import Finished, PlanState
from uniavgen.orchestration.plan_runs.steps import STEPS, Job, Step
from uniavgen.orchestration.tracking.environment import code_version
from uniavgen.orchestration.tracking.stage_record import Record, recorded
from uniavgen.shards.atomic_files import locked
from uniavgen.shards.errors import Stopped
from uniavgen.shards.heartbeat import Heartbeat

if TYPE_CHECKING:
    from uniavgen.orchestration.tracking.mlflow_runs import Run


def dry_run(
    job: Job, *, only: Sequence[str] = (), start: str = "", until: str = "", steps: Sequence[Step] = STEPS
) -> list[Decision]:
    """What a run would do, step by step; printed. Nothing is written."""
    with chdir(job.plan.home):
        decisions = decide_all(select(steps, job, only, start, until), job, PlanState(job.plan.state_folder))
    rows = [(decision.step, decision.action, decision.reason) for decision in decisions]
    console.table(f"plan {job.plan.name}: what would run", ("step", "action", "reason"), rows)
    return decisions


def run_plan(
    job: Job, *, only: Sequence[str] = (), start: str = "", until: str = "", steps: Sequence[Step] = STEPS
) -> dict[str, Any]:
    """Run the steps that have to run. Returns, by step, what happened, and its summary.

    The summary of a skipped step is that of its last run. Raises UserError (busy) if another process runs the
    plan, and what the failing step raises; the steps behind it do not run then.
    """
    chosen = select(steps, job, only, start, until)
    state = PlanState(job.plan.state_folder)
    state.create()
    version = code_version()
    with (
        locked(state.lock, "another process runs this plan"),
        Heartbeat(state.alive) as beat,
        chdir(job.plan.home),
    ):
        stored = state.store_plan(resolved(job.plan, job.settings), version)
        parent = Record(
            job.settings.tracking,
            state.folder,
            f"plan {job.plan.name}",
            lambda run: None,
            partial(plan_note, job, state, steps),
        )
        state.log("run", plan=str(stored), steps=[step.name for step in chosen], code_version=version)
        with recorded(parent), ExitStack() as ray:
            if run := parent.run:
                job = _below(job, run)
                _log_plan(run, stored)
            results = {}
            for number, step in enumerate(chosen):
                later = any(other.uses_ray for other in chosen[number + 1 :])
                if not (step.uses_ray or later):
                    ray.close()  # what it holds is free for the steps that are left
                share = ray if step.uses_ray and later else None
                results[step.name] = _run_step(step, job, state, beat, share, parent)
        state.log("end")
    _show_results(job, results)
    return {
        "command": "run",
        "plan": job.plan.name,
        "folder": str(job.plan.folder),
        "resolved": str(stored),
        "steps": results,
    }


def _run_step(
    step: Step, job: Job, state: PlanState, beat: Heartbeat, ray: ExitStack | None, parent: Record
) -> dict[str, Any]:
    """Run one step, or skip it. Returns action, reason, seconds and summary.

    `ray` keeps Ray for the steps behind this one; None leaves it to the step.
    """
    beat.update(step=step.name, since=time.time())
    decision, depends = decide(step, job, state)
    if decision.action == "skip":
        console.print_line(f"{step.name}: skipped, {decision.reason}", style="dim")
        record = state.finished(step.name)
        summary = record.summary if record else {}
        return {"action": "skipped", "reason": decision.reason, "seconds": 0.0, "summary": summary}
    console.print_heading(f"{step.name}: {decision.reason}")
    state.log("start", step.name, reason=decision.reason)
    state.remove_finished(step.name)
    began = time.monotonic()
    try:
        if ray is not None:
            _start_ray(ray)
        summary = step.run(job)
    except BaseException as error:
        stopped = isinstance(error, Stopped | KeyboardInterrupt)
        message = console.first_line(error)
        state.log("stopped" if stopped else "failed", step.name, message=message, kind=_kind(error))
        raise
    seconds = round(time.monotonic() - began, 1)
    record = Finished(time.time(), seconds, depends, step.outputs(job), summary)
    state.write_finished(step.name, record)
    state.log("done", step.name, seconds=seconds)
    if parent.run:
        _log_seconds(parent.run, step.name, seconds)
        parent.describe()
    return {"action": "done", "reason": decision.reason, "seconds": seconds, "summary": summary}


def plan_note(job: Job, state: PlanState, steps: Sequence[Step], error: str = "") -> str:
    """Description of the plan's MLflow run, as Markdown. `error`: what ended the run, "" for none."""
    rows = ["| step | state | seconds |", "| --- | --- | --- |"]
    for step in steps:
        if job.plan.steps.options(step.name) is not None:
            record, last = state.finished(step.name), state.last_event(step.name).get("event", "")
            shown = "done" if record else {"start": "running", "": "waiting"}.get(last, last)
            rows.append(f"| {step.name} | {shown} | {record.seconds if record else '-'} |")
    paragraphs = [
        f"**ended: {error}**" if error else "",
        f"Plan `{job.plan.name}` in `{job.plan.folder}`. The runs of its corpus and training are below this "
        "one.",
        "\n".join(rows),
        f"To continue or repeat: `uniavgen run` with a file of `{state.folder / 'runs'}`, also stored as an "
        "artifact.",
    ]
    return "\n\n".join(part for part in paragraphs if part)


def _below(job: Job, run: Run) -> Job:
    """The job with settings that put the MLflow runs of its commands below `run`."""
    tracking = job.settings.tracking.model_copy(update={"uri": run.uri, "parent": run.id})
    return Job(job.plan, job.settings.model_copy(update={"tracking": tracking}))


def _log_plan(run: Run, stored: Path) -> None:
    from uniavgen.orchestration.tracking.mlflow_runs import warn_on_error

    with warn_on_error("the plan"):
        run.artifact(stored, "plans")


def _log_seconds(run: Run, step: str, seconds: float) -> None:
    from uniavgen.orchestration.tracking.mlflow_runs import warn_on_error

    with warn_on_error(f"the seconds of step {step}"):
        run.metrics({f"seconds/{step}": seconds})


def _start_ray(stack: ExitStack) -> None:
    """Start Ray, if this process has none; it ends with the stack."""
    from uniavgen.shards.cluster import ray_running

    stack.enter_context(ray_running())


def _kind(error: BaseException) -> str:
    return getattr(error, "kind", "") or type(error).__name__


def _show_results(job: Job, results: dict[str, dict[str, Any]]) -> None:
    rows = [
        (name, result["action"], result["seconds"], result["reason"]) for name, result in results.items()
    ]
    console.table(f"plan {job.plan.name}", ("step", "what", "seconds", "reason"), rows)
