"""Which steps of a plan have to run, and why. Nothing is written."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from uniavgen.orchestration.plan_runs.state import Fingerprint, Finished, PlanState
from uniavgen.orchestration.plan_runs.steps import MISSING, Job, Step, code_digest, step_settings
from uniavgen.shards.errors import UsageError, choice_hint

MAX_NAMED = 3
"""Changed settings that a reason names."""
ABSENT = object()


@dataclass(frozen=True)
class Decision:
    """What happens with a step. `maybe`: its inputs may be the same after the steps before it have run."""

    step: str
    action: Literal["run", "maybe", "skip"]
    reason: str


def select(
    steps: Sequence[Step], job: Job, only: Sequence[str] = (), start: str = "", until: str = ""
) -> list[Step]:
    """The steps of the plan that --only, --from and --until leave. Raises UsageError for an unknown name."""
    planned = [step for step in steps if job.plan.steps.options(step.name) is not None]
    names = [step.name for step in planned]
    for option, name in [*(("--only", name) for name in only), ("--from", start), ("--until", until)]:
        if name and name not in names:
            raise UsageError(f"the plan has no step {name!r}", where=option, hint=choice_hint(name, names))
    if only and (start or until):
        raise UsageError("give --only, or --from and --until", where="--only")
    first = names.index(start) if start else 0
    last = names.index(until) if until else len(names) - 1
    if first > last:
        raise UsageError(f"{start} comes after {until}", where="--from, --until")
    if only:
        return [step for step in planned if step.name in only]
    return planned[first : last + 1]


def fingerprint(step: Step, job: Job) -> Fingerprint:
    """What the step depends on now. Raises UserError if an input cannot be read, as a missing source."""
    return Fingerprint(step_settings(step, job), step.inputs(job), code_digest(step.code))


def decide(step: Step, job: Job, state: PlanState) -> tuple[Decision, Fingerprint]:
    """Whether the step has to run on its present inputs, and what it depends on."""
    now = fingerprint(step, job)
    if reason := step.why_not(job):
        return Decision(step.name, "skip", reason), now
    record = state.finished(step.name)
    if record is None:
        return Decision(step.name, "run", _why_unfinished(state.last_event(step.name))), now
    if reason := why_again(record, now, step.outputs(job)):
        return Decision(step.name, "run", reason), now
    return Decision(step.name, "skip", f"unchanged since {format_time(record.at)}"), now


def decide_all(steps: Sequence[Step], job: Job, state: PlanState) -> list[Decision]:
    """What a run of these steps would do. A step behind one that runs may find other inputs by then."""
    decisions: list[Decision] = []
    moving: dict[str, str] = {}  # steps whose output may change -> the step that causes it
    for step in steps:
        before = next((name for name in step.after if name in moving), None)
        if before is None:
            decision, _ = decide(step, job, state)
        elif reason := step.why_not(job):
            decision = Decision(step.name, "skip", reason)
        elif (record := state.finished(step.name)) is None:
            decision = Decision(step.name, "run", _why_unfinished(state.last_event(step.name)))
        elif reason := why_again(record, _on_former_inputs(step, job, record), step.outputs(job)):
            decision = Decision(step.name, "run", reason)
        else:
            decision = Decision(step.name, "maybe", f"if {moving[before]} changes its input")
        decisions.append(decision)
        if decision.action != "skip":
            moving[step.name] = step.name
        elif before is not None:  # nothing to do here: what is behind it still waits for the one before
            moving[step.name] = moving[before]
    return decisions


def _on_former_inputs(step: Step, job: Job, record: Finished) -> Fingerprint:
    """What the step depends on, if its inputs are those of its last run."""
    return Fingerprint(step_settings(step, job), record.depends.inputs, code_digest(step.code))


def why_again(record: Finished, now: Fingerprint, outputs: Mapping[str, str]) -> str:
    """Why a finished step has to run again; "" if nothing has changed."""
    reasons = []
    missing = [name for name, value in outputs.items() if value == MISSING != record.outputs.get(name)]
    changed = [name for name in _changed(record.outputs, outputs) if name not in missing]
    if missing:
        reasons.append(f"missing: {', '.join(missing)}")
    if changed:
        reasons.append(f"changed since by something else: {', '.join(changed)}")
    if inputs := _changed(record.depends.inputs, now.inputs):
        reasons.append("other input: " + ", ".join(_shown(record.depends.inputs, now.inputs, inputs)))
    if settings := _changed(record.depends.settings, now.settings):
        named = _shown(record.depends.settings, now.settings, settings[:MAX_NAMED])
        more = f" and {len(settings) - MAX_NAMED} more" if len(settings) > MAX_NAMED else ""
        reasons.append(f"other settings: {', '.join(named)}{more}")
    if record.depends.code != now.code:
        reasons.append("other code")
    return "; ".join(reasons)


def format_time(at: float) -> str:
    """Seconds since 1970 as local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def _why_unfinished(last: Mapping[str, Any]) -> str:
    """Why a step has no record, from its last line in the journal."""
    if not last:
        return "not run yet"
    at = format_time(float(last["time"]))
    if last["event"] == "start":
        return f"interrupted, it had begun {at}"
    if last["event"] in ("failed", "stopped", "skipped"):
        return f"{last['event']} {at}: {last.get('message', '')}"
    return "its record is missing"


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [name for name in {**before, **now} if before.get(name, ABSENT) != now.get(name, ABSENT)]


def _shown(before: Mapping[str, Any], now: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """`name old -> new` of each name."""
    return [f"{name} {_value(before, name)} -> {_value(now, name)}" for name in names]


def _value(values: Mapping[str, Any], name: str) -> str:
    text = str(values[name]) if name in values else "none"
    return text if len(text) <= 60 else f"{text[:57]}..."
