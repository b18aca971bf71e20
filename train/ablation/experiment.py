"""Run one experiment: train a small model on made data, generate held-out clips, measure them.

Model, tasks, flow matching and sampler are those of real training. Only the loop is a plain PyTorch loop:
dozens of models of 150 k parameters that train for seconds need neither DeepSpeed nor shards.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from uniavgen.shards.atomic_files import replace_file
from uniavgen.shards.errors import UserError
from uniavgen.train.ablation.config import AblateConfig, WorldConfig
from uniavgen.train.ablation.readout import agreement, read_face
from uniavgen.train.ablation.tables import Experiment, Training
from uniavgen.train.ablation.world import world_batch
from uniavgen.train.batch import LatentBatch
from uniavgen.train.config import ObjectiveConfig, SamplingConfig
from uniavgen.train.flow_matching import Draw, task_at, velocity_loss
from uniavgen.train.model.dual_branch import DualBranch
from uniavgen.train.model.objective import compute_losses, lambda_at, mask_iou, prepare_inputs
from uniavgen.train.model.parts import count_parameters
from uniavgen.train.sampling import sample
from uniavgen.train.tasks import Task

TOGETHER, HELD_OUT = 500_000, 1_000_000
"""Added to the seed of the made data: for the training of rows, and for held-out clips."""
CURVE_EVERY = 50


@dataclass(frozen=True)
class Job:
    """A training and its experiments, in the run folder `folder`."""

    training: Training
    experiments: tuple[Experiment, ...]
    folder: str


def result_file(folder: Path | str, key: str) -> Path:
    """Path of an experiment's result."""
    return Path(folder) / "experiments" / key / "result.json"


def weights_file(folder: Path | str, key: str) -> Path:
    """Path of a training's weights."""
    return Path(folder) / "trainings" / key / "weights.safetensors"


def reference_levels(config: AblateConfig) -> dict[str, dict[str, float]]:
    """Mean agreements of held-out clips with their own audio (`truth`) and with other audio (`chance`)."""
    batch = world_batch(config.world, HELD_OUT, tuple(range(config.clips)))
    assert batch.video is not None
    pairings = {"chance": batch.mel.roll(1, 0), "truth": batch.mel}
    agreements = {name: agreement(batch.video, mel, config.world) for name, mel in pairings.items()}
    return {
        name: {measure: float(values.mean()) for measure, values in entry.items()}
        for name, entry in agreements.items()
    }


def run_job(job: Job) -> list[str]:
    """Train if the weights do not exist, then measure every experiment. Returns the keys of the experiments.

    Raises UserError if the loss becomes NaN.
    """
    torch.set_num_threads(1)
    model, notes = trained(job.training, job.folder)
    if not job.experiments:
        return []
    batch = held_out(job.training, job.experiments[0].clips)
    losses = held_out_losses(model, job.training, batch)
    for experiment in job.experiments:
        started = time.monotonic()
        agreements = generate_and_measure(model, batch, experiment.sampler, job.training)
        measures = {name: float(values.mean()) for name, values in agreements.items()}
        document = {
            "experiment": experiment.model_dump(mode="json"),
            "measures": measures | losses,
            **notes,
            "measure_seconds": round(time.monotonic() - started, 1),
        }
        path = result_file(job.folder, experiment.key)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, (json.dumps(document, indent=1) + "\n").encode())
    return [experiment.key for experiment in job.experiments]


def trained(training: Training, folder: Path | str) -> tuple[DualBranch, dict[str, Any]]:
    """The trained model and notes on its training; trains it first if the run folder has no weights."""
    torch.manual_seed(training.seed)
    model = DualBranch(training.model)
    weights = weights_file(folder, training.key)
    notes = weights.with_name("training.json")
    if not weights.is_file():
        if training.begins_with is not None:
            branches = trained(training.begins_with, folder)[0].state_dict()
            model.load_state_dict(
                {name: value for name, value in branches.items() if not is_interaction(name)}, strict=False
            )
        started = time.monotonic()
        curve = train(model, training)
        seconds = round(time.monotonic() - started, 1)
        weights.parent.mkdir(parents=True, exist_ok=True)
        document = {"parameters": count_parameters(model)["total"], "train_seconds": seconds, "curve": curve}
        replace_file(notes, (json.dumps(document) + "\n").encode())
        replace_file(weights, save(dict(model.state_dict())))
    model.load_state_dict(load_file(weights))
    return model, json.loads(notes.read_text())


def is_interaction(name: str) -> bool:
    """Whether a parameter belongs to the interaction, which every row initialises at random."""
    return name.startswith("interactions.")


def train(model: DualBranch, training: Training) -> list[dict[str, float]]:
    """Train in place, with new clips at every step.

    Returns mean losses of every 50 steps. Raises UserError for NaN.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.lr, weight_decay=0.01, fused=True)
    world_seed = training.seed + TOGETHER * training.interact
    first_phase = training.phases[0].share * training.steps
    places = tuple(range(training.batch))
    recent, curve = list[dict[str, float]](), list[dict[str, float]]()
    for step in range(training.steps):
        optimizer.param_groups[0]["lr"] = lr_at(training, step)
        batch = world_batch(
            training.world, world_seed, tuple(step * training.batch + place for place in places)
        )
        losses = compute_losses(
            partial(model, interact=training.interact),
            batch,
            task_of(training, step),
            Draw(training.seed, step, places),
            training.objective,
            training.model.face,
            lambda_at(training.model.face, step / first_phase),
            mels_per_frame=training.world.mels_per_frame,
        )
        optimizer.zero_grad()
        losses["total"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent.append({name: value.item() for name, value in losses.items()})
        if (step + 1) % CURVE_EVERY == 0 or step + 1 == training.steps:
            curve.append(
                {"step": step + 1}
                | {name: sum(row[name] for row in recent) / len(recent) for name in recent[0]}
            )
            recent.clear()
            if curve[-1]["total"] != curve[-1]["total"]:
                raise UserError(
                    f"the loss became NaN before step {step + 1}",
                    hint="lower ablate.lr",
                    kind="loss-not-finite",
                )
    return curve


def lr_at(training: Training, step: int) -> float:
    """Learning rate of 0-based `step`: linear warm-up, constant, linear to 0 over the last 30 %."""
    rise = (step + 1) / (training.warmup + 1)
    fall = (1 - step / training.steps) / 0.3
    return training.lr * min(1.0, rise, fall)


def task_of(training: Training, step: int) -> Task:
    """The task of a step, by the task mix of its phase."""
    end = 0.0
    for phase in training.phases:
        end += phase.share * training.steps
        if step < end:
            break
    return task_at(training.seed, step, phase.tasks)


def held_out(training: Training, clips: int) -> LatentBatch:
    """Clips that no training sees, the same for every row of a seed."""
    return world_batch(training.world, HELD_OUT + training.seed, tuple(range(clips)))


@torch.no_grad()
def held_out_losses(model: DualBranch, training: Training, batch: LatentBatch) -> dict[str, float]:
    """Velocity losses of joint generation, on the same draws for every row, and the IoU of the face masks."""
    objective = ObjectiveConfig(timestep=training.objective.timestep, caption_dropout=0, speech_dropout=0)
    draw = Draw(HELD_OUT + training.seed, 0, tuple(range(len(batch.keys))))
    rate, face = training.world.mels_per_frame, training.model.face
    inputs = prepare_inputs(batch, Task.JOINT, draw, objective, face, mels_per_frame=rate)
    out = model(inputs.video, inputs.audio)
    losses = {
        "video_loss": _loss(out.video, inputs.video_target, inputs.video_scored),
        "audio_loss": _loss(out.audio, inputs.audio_target, inputs.audio_scored),
    }
    if out.face_masks is not None and inputs.face is not None and inputs.face_scored is not None:
        losses["mask_iou"] = float(mask_iou(out.face_masks, inputs.face, inputs.face_scored).mean())
    return losses


def generate_and_measure(
    model: DualBranch, batch: LatentBatch, sampler: SamplingConfig, training: Training
) -> dict[str, Tensor]:
    """Agreements of generated video and audio per clip [B], and `identity`: cosine of true and read look."""
    assert batch.video is not None
    world: WorldConfig = training.world
    seed = HELD_OUT + training.seed
    video, mel = sample(
        model,
        batch,
        Task.JOINT,
        sampler,
        seed,
        shifts=training.objective.sampler_shifts(batch.tokens),
        mels_per_frame=world.mels_per_frame,
    )
    assert video is not None
    true_look, look = read_face(batch.video, world).look, read_face(video, world).look
    return agreement(video, mel, world) | {"identity": torch.cosine_similarity(true_look, look, dim=1)}


def _loss(predicted: Tensor | None, target: Tensor | None, scored: Tensor | None) -> float:
    assert predicted is not None
    assert target is not None
    assert scored is not None
    return float(velocity_loss(predicted, target, scored).mean())
