"""What MLflow shows on top of a training's page: in a minute, a person knows what it is, how far it came and where to look.

In: the settings and the run folder, as they stand. Out: Markdown, for `Run.describe`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniavgen.orchestration.console import shown
from uniavgen.train.checkpoint.run_folder import RunFolder

if TYPE_CHECKING:
    from uniavgen.train.config import StageConfig, TrainConfig

TOLD = 8
"""Newest events of a stage that its description repeats."""
WHERE_TO_LOOK = (
    (
        "smoothed/loss/",
        "does it learn: losses by modality, over about 50 steps; `smoothed/task/` tells them apart by task",
    ),
    ("validation/", "on clips of val at fixed noise, so comparable over the whole run and between runs"),
    ("fixed/", "losses on the same draws before and after the stage"),
    ("loss_at/", "losses by task, modality and part of the diffusion time (t = 1 is noise)"),
    ("output_norm/", "Wo of every interaction layer: 0 at the start, and a layer that stays there is dead"),
    ("mask_iou/", "how well each layer's face mask meets the detected face"),
    ("time/", "seconds a step, samples and tokens a second, and the wait for data"),
    ("system/", "processors, memory, disk and GPUs of the machine that started it"),
)
"""Groups of metrics, the most telling first."""
OF_PICTURES = ("output_norm/", "mask_iou/")
"""Groups that a stage of sound alone does not have."""


def plan_note(config: TrainConfig, run_dir: Path, corpus: str, error: str = "") -> str:
    """The parent run: its stages, what they take, and what each came to so far; `error` is what ended it."""
    rows = [_stage_row(config, stage, RunFolder(run_dir, stage.name)) for stage in config.stages]
    columns = (
        "stage",
        "starts from",
        "data",
        "tasks",
        "steps x batch",
        "lr",
        "state",
        "losses on fixed draws",
    )
    command = f"uniavgen train all --corpus {corpus} --run {run_dir} --config configuration.yaml"
    paragraphs = [
        f"**ended: {error}**" if error else "",
        f"Training in `{run_dir}` on corpus `{corpus}`. Every stage is a run below this one; samples are artifacts here.",
        _table(columns, rows),
        f"To go on after any end: `{command}`, with the artifact of that name.",
    ]
    return "\n\n".join(part for part in paragraphs if part)


def stage_note(
    config: TrainConfig, name: str, run_dir: Path, shards: Sequence[str], version: str, error: str = ""
) -> str:
    """A stage's run: what it trains on what, how it went, and which metrics answer which question."""
    stage, folder = config.stage(name), RunFolder(run_dir, name)
    parts = ", ".join(stage.trains) or "all its parts"
    workers = "1 worker" if config.workers == 1 else f"{config.workers} workers"
    paragraphs = [
        f"**{f'ended: {error}' if error else _state(folder)}**",
        f"Stage {name}, from {_source(stage)}; trains {parts} on {_mix(stage)}: {stage.steps} steps of {stage.batch} samples, "
        f"lr {stage.lr:g}, {workers}, ZeRO {config.deepspeed.zero_stage}, {config.deepspeed.dtype}.",
        f"Data: {', '.join(f'`{place}`' for place in shards)}, corpus version `{version}`.",
    ]
    outcome = folder.read().get("outcome") if folder.done else None
    if outcome:
        paragraphs.append(_outcome(outcome))
    events = _events(folder)
    if events:
        paragraphs.append("What happened on the way:\n\n" + "\n".join(f"- {text}" for text in events))
    absent = (*(() if stage.picture else OF_PICTURES), *(() if config.validation.every else ("validation/",)))
    groups = [(f"`{group}`", answer) for group, answer in WHERE_TO_LOOK if group not in absent]
    paragraphs.append(_table(("metrics", "answer"), groups))
    return "\n\n".join(paragraphs)


def _stage_row(config: TrainConfig, stage: StageConfig, folder: RunFolder) -> tuple[str, ...]:
    data = "audio shards" if stage.emilia.shards else "clips"
    outcome = folder.read().get("outcome", {}) if folder.done else {}
    size = f"{stage.steps} x {stage.batch}"
    return (
        stage.name,
        _source(stage),
        data,
        _mix(stage),
        size,
        f"{stage.lr:g}",
        _state(folder),
        _losses(outcome) or "-",
    )


def _state(folder: RunFolder) -> str:
    if folder.done:
        return "done"
    steps = folder.steps()
    return f"saved after step {steps[-1]}" if steps else "in training" if folder.read() else "waiting"


def _source(stage: StageConfig) -> str:
    named = [
        f"{part} from {path}"
        for part, path in (("video", stage.pretrained.video), ("audio", stage.pretrained.audio))
        if path
    ]
    return ", ".join(([f"stage {stage.takes_from}"] if stage.takes_from else []) + named) or "random weights"


def _mix(stage: StageConfig) -> str:
    if not stage.picture:
        return "speech"
    chosen = {task: weight for task, weight in stage.tasks.items() if weight}
    return ", ".join(f"{task} {weight}" if len(chosen) > 1 else str(task) for task, weight in chosen.items())


def _losses(outcome: Mapping[str, Any]) -> str:
    before, after = outcome.get("fixed_start", {}), outcome.get("fixed_end", {})
    return ", ".join(f"{name} {before[name]:.3f} → {after[name]:.3f}" for name in before if name in after)


def _outcome(outcome: Mapping[str, Any]) -> str:
    losses = _losses(outcome)
    counts = ", ".join(
        f"{name.replace('_', ' ')} {shown(count)}" for name, count in outcome["counts"].items() if count
    )
    told = [
        f"Losses on fixed draws: {losses}." if losses else "",
        f"{outcome['steps']} steps in {outcome['seconds']:.0f} s, {shown(outcome['samples_per_s'])} samples/s, "
        f"{outcome['data_wait_share']:.1%} of it waiting for data.",
        f"Clips: {counts}." if counts else "",
        f"Parameters: {outcome['parameters']['total'] / 1e6:,.2f} million.",
    ]
    return " ".join(part for part in told if part)


def _events(folder: RunFolder) -> list[str]:
    text = folder.events.read_text() if folder.events.is_file() else ""
    whole = text[: text.rfind("\n") + 1].splitlines()  # a kill may have left half a line
    told = list(
        dict.fromkeys(json.loads(line)["text"] for line in whole)
    )  # each start tells of its data anew
    older = [f"({len(told) - TOLD} earlier ones are in `{folder.events}`)"] if len(told) > TOLD else []
    return older + told[-TOLD:]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
