"""Descriptions of training runs in MLflow, as Markdown: what is trained, its state, which metrics to read."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniavgen.orchestration.output.console import format_value
from uniavgen.train.checkpoint.run_folder import RunFolder
from uniavgen.train.starting_weights import describe_sources, part_sources

if TYPE_CHECKING:
    from uniavgen.train.config import StageConfig, TrainConfig

MAX_EVENTS = 8
"""Newest events of a stage that its description repeats."""
METRIC_GROUPS = (
    (
        "smoothed/loss/",
        "does it learn: losses by modality, smoothed over about 50 steps; `smoothed/task/`: the same by task",
    ),
    ("validation/", "losses on clips of val with fixed noise, comparable over the run and between runs"),
    ("fixed/", "losses on the same fixed draws before and after the stage"),
    ("loss_at/", "losses by task, modality and part of the diffusion time (t = 1 is noise)"),
    (
        "output_norm/",
        "norm of Wo of every interaction layer: 0 at the start; a layer that stays at 0 is unused",
    ),
    ("mask_iou/", "overlap of each layer's predicted face mask with the detected face"),
    ("time/", "seconds per step, samples and tokens per second, time spent waiting for data"),
    ("system/", "CPU, memory, disk and GPU usage of the machine that started the run"),
)
"""Prefix of a group of metrics and the question that it answers, the most useful first."""
VIDEO_GROUPS = ("output_norm/", "mask_iou/")
"""Groups that an audio stage does not have."""


def training_note(config: TrainConfig, run_dir: Path, corpus: str, error: str = "") -> str:
    """Description of the parent run: a table of its stages. `error`: what ended the run, "" for none."""
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
    named = ["--corpus", str(corpus), "--run", str(run_dir), "--config", "configuration.yaml"]
    command = shlex.join(["uniavgen", "train", "all", *named])
    paragraphs = [
        f"**ended: {error}**" if error else "",
        f"Training in `{run_dir}` on corpus `{corpus}`. "
        "Each stage is a child run; generated samples are artifacts of this run.",
        _table(columns, rows),
        f"To continue: `{command}`; `configuration.yaml` is an artifact of this run.",
    ]
    return "\n\n".join(part for part in paragraphs if part)


def stage_note(
    config: TrainConfig, name: str, run_dir: Path, shards: Sequence[str], version: str, error: str = ""
) -> str:
    """Description of a stage's run: settings, data, outcome, events, and what the metrics tell."""
    stage, folder = config.stage(name), RunFolder(run_dir, name)
    parts = ", ".join(stage.trains) or "all parts"
    workers = "1 worker" if config.workers == 1 else f"{config.workers} workers"
    paragraphs = [
        f"**{f'ended: {error}' if error else _state(folder)}**",
        f"Stage {name}. Weights: {describe_sources(part_sources(config, stage))}. "
        f"Trains {parts} on {_task_mix(stage)}: {stage.steps} steps of {stage.batch} samples, "
        f"lr {stage.lr:g}, {workers}, ZeRO {config.deepspeed.zero_stage}, {config.deepspeed.dtype}.",
        f"Data: {', '.join(f'`{folder}`' for folder in shards)}, corpus version `{version}`.",
    ]
    outcome = folder.read().get("outcome") if folder.done else None
    if outcome:
        paragraphs.append(_outcome(outcome))
    events = _events(folder)
    if events:
        paragraphs.append("Events:\n\n" + "\n".join(f"- {text}" for text in events))
    absent = (
        *(() if stage.has_video else VIDEO_GROUPS),
        *(() if config.validation.every else ("validation/",)),
    )
    groups = [(f"`{group}`", answer) for group, answer in METRIC_GROUPS if group not in absent]
    paragraphs.append(_table(("metrics", "answer"), groups))
    return "\n\n".join(paragraphs)


def _stage_row(config: TrainConfig, stage: StageConfig, folder: RunFolder) -> tuple[str, ...]:
    data = "audio shards" if stage.emilia.shards else "clips"
    outcome = folder.read().get("outcome", {}) if folder.done else {}
    size = f"{stage.steps} x {stage.batch}"
    return (
        stage.name,
        describe_sources(part_sources(config, stage)),
        data,
        _task_mix(stage),
        size,
        f"{stage.lr:g}",
        _state(folder),
        _losses(outcome) or "-",
    )


def _state(folder: RunFolder) -> str:
    if folder.done:
        return "done"
    steps = folder.steps()
    return f"checkpoint at step {steps[-1]}" if steps else "training" if folder.read() else "waiting"


def _task_mix(stage: StageConfig) -> str:
    if not stage.has_video:
        return "speech"
    chosen = {task: weight for task, weight in stage.tasks.items() if weight}
    return ", ".join(f"{task} {weight}" if len(chosen) > 1 else str(task) for task, weight in chosen.items())


def _losses(outcome: Mapping[str, Any]) -> str:
    before, after = outcome.get("fixed_start", {}), outcome.get("fixed_end", {})
    return ", ".join(f"{name} {before[name]:.3f} → {after[name]:.3f}" for name in before if name in after)


def _outcome(outcome: Mapping[str, Any]) -> str:
    losses = _losses(outcome)
    counts = ", ".join(
        f"{name.replace('_', ' ')} {format_value(count)}"
        for name, count in outcome["counts"].items()
        if count
    )
    sentences = [
        f"Losses on fixed draws: {losses}." if losses else "",
        f"{outcome['steps']} steps in {outcome['seconds']:.0f} s, "
        f"{format_value(outcome['samples_per_s'])} samples/s, "
        f"{outcome['data_wait_share']:.1%} of the time waiting for data.",
        f"Clips: {counts}." if counts else "",
        f"Parameters: {outcome['parameters']['total'] / 1e6:,.2f} million.",
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _events(folder: RunFolder) -> list[str]:
    text = folder.events.read_text() if folder.events.is_file() else ""
    complete = text[: text.rfind("\n") + 1].splitlines()  # a killed process may leave half a line
    # every start of a stage repeats some events
    texts = list(dict.fromkeys(json.loads(line)["text"] for line in complete))
    older = len(texts) - MAX_EVENTS
    return [f"({older} older ones are in `{folder.events}`)"] * (older > 0) + texts[-MAX_EVENTS:]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
