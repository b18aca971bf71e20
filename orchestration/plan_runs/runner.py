"""Run the steps of a plan in order, and record each one.

A step's record is removed before it runs and written after it finished. So a process that is killed at any
moment leaves at most one step to run again, and the commands themselves repeat nothing that they had done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
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
        state.log("run", plan=str(stored), steps=[step.name for step in chosen], code_version=version)
        note = partial(plan_note, job, state, steps)
        tracking = job.settings.tracking
        run_name = tracking.run_name(f"plan {job.plan.name} in", job.plan.folder)
        parent = Record(tracking, state.folder, run_name, lambda run: None, note)
        with recorded(parent):
            if run := parent.run:
                job = _below(job, run)
                _log_plan(run, stored)
            results = run_steps(job, chosen, state, beat, partial(_log_seconds, parent))
        state.log("end")
    _show_results(job, results)
    return {
        "command": "run",
        "plan": job.plan.name,
        "folder": str(job.plan.folder),
        "resolved": str(stored),
        "steps": results,
    }


def run_steps(
    job: Job,
    chosen: Sequence[Step],
    state: PlanState,
    beat: Heartbeat,
    on_done: Callable[[str, float], None] = lambda step, seconds: None,
) -> dict[str, dict[str, Any]]:
    """Run these steps in order, each if it has to. `on_done` gets the name and the seconds of each that ran.

    Steps on Ray share one Ray, which ends behind the last of them.
    """
    results: dict[str, dict[str, Any]] = {}
    with ExitStack() as ray:
        for number, step in enumerate(chosen):
            later = any(other.uses_ray for other in chosen[number + 1 :])
            if not (step.uses_ray or later):
                ray.close()  # what it holds is free for the steps that are left
            share = ray if step.uses_ray and later else None
            results[step.name] = result = _run_step(step, job, state, beat, share)
            if result["action"] == "done":
                on_done(step.name, result["seconds"])
    return results


def _run_step(
    step: Step, job: Job, state: PlanState, beat: Heartbeat, ray: ExitStack | None
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
        if record is None and state.last_event(step.name).get("message") != decision.reason:
            state.log("skipped", step.name, message=decision.reason)
        return {"action": "skipped", "reason": decision.reason, "seconds": 0.0, "summary": summary}
    console.print_heading(f"{step.name}: {decision.reason}")
    state.log("start", step.name, reason=decision.reason)
    state.remove_finished(step.name)
    began = time.monotonic()
    try:
        if ray is not None:
            _start_ray(ray)
        with console.observed(_progress_to(beat, step.name)):
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
    return {"action": "done", "reason": decision.reason, "seconds": seconds, "summary": summary}


def _progress_to(beat: Heartbeat, step: str) -> console.Observer:
    """An observer of progress lines that writes count and rate to the heartbeat."""
    since = time.time()
    began: dict[str, tuple[float, float]] = {}  # label of a line, without numbers -> its first count and time

    def observe(label: str, done: float, total: float | None) -> None:
        now = time.monotonic()
        first, at = began.setdefault(label.partition(":")[0], (done, now))
        rate = (done - first) / (now - at) if done > first and now > at else None
        beat.update(step=step, since=since, label=label, done=done, total=total, rate=rate)

    return observe


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
    """The job with settings that put the MLflow runs of its commands below `run`, with their own names."""
    tracking = job.settings.tracking.model_copy(update={"uri": run.uri, "parent": run.id, "name": ""})
    return Job(job.plan, job.settings.model_copy(update={"tracking": tracking}))


def _log_plan(run: Run, stored: Path) -> None:
    from uniavgen.orchestration.tracking.mlflow_runs import warn_on_error

    with warn_on_error("the plan"):
        run.artifact(stored, "plans")


def _log_seconds(parent: Record, step: str, seconds: float) -> None:
    """Record the duration of a step in the plan's run, and bring its description up to date."""
    from uniavgen.orchestration.tracking.mlflow_runs import warn_on_error

    if parent.run:
        with warn_on_error(f"the seconds of step {step}"):
            parent.run.metrics({f"seconds/{step}": seconds})
        parent.describe()


def _start_ray(stack: ExitStack) -> None:
    """Start Ray, if this process has none; it ends with the stack."""
    from uniavgen.shards.cluster import ray_running

    stack.enter_context(ray_running())


def _kind(error: BaseException) -> str:
    return getattr(error, "kind", "") or type(error).__name__


def _show_results(job: Job, results: dict[str, dict[str, Any]]) -> None:
    rows = [(name, result["action"], result["seconds"], result["reason"]) for name, result in results.items()]
    console.table(f"plan {job.plan.name}", ("step", "what", "seconds", "reason"), rows)
