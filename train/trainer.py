"""What every training worker does: one stage, under DeepSpeed, from its start or its last checkpoint to its weights.

In: a Job (plan, stage, shards folder, run folder) and an initialised torch.distributed. Out: the run folder of
`train.checkpoint`, metrics through `on_metrics`, and the stage's Outcome. All randomness is a function of
(seed, step, sample index), and one task is drawn per step, so neither losses nor graphs depend on the number of workers.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from shards.errors import UserError
from shards.stream import SampleStream
from train.checkpoint import RunFolder, changed_fields, hand_over, under
from train.codec.registry import load_codecs
from train.data import BatchLoader, Loaded, prefetched
from train.engine import begin_engine, full_weights, grad_norm, load_state, save_state
from train.meters import History, Meter, Outcome
from train.model.dual_branch import DualBranch
from train.model.face_modulation import lambda_at
from train.options import Task
from train.stages import StageConfig, TrainConfig, face_for, lr_at
from train.tasks import Draw, task_at, total_loss

log = logging.getLogger(__name__)

OnMetrics = Callable[[int, dict[str, float]], None]
"""Called on the first worker after every step with the number of steps done and their metrics."""


class MetricsFactory(Protocol):
    """Makes the receiver of metrics inside the first worker; must pickle."""

    def __call__(self) -> OnMetrics: ...


@dataclass(frozen=True)
class Job:
    """What a worker is told. `device` is `cpu` or `cuda`."""

    config: TrainConfig
    stage: str
    shards_dir: str
    run_dir: str
    device: str = "cpu"
    on_metrics_factory: MetricsFactory | None = None


class StageTrainer:
    """One worker's part of one stage. Every worker builds one and calls `run`; each gets the same Outcome."""

    def __init__(self, job: Job) -> None:
        """Raises UserError for missing or misfitting weights, shards, or a checkpoint of another configuration."""
        self.config, self.stage = job.config, job.config.stage(job.stage)
        config, stage = self.config, self.stage
        rank, world = dist.get_rank(), dist.get_world_size()
        self.folder = RunFolder(job.run_dir, stage.name)
        model = build_model(job, stage, rank)
        self.parameters = model.parameter_counts()
        self.engine: Any = begin_engine(model, config, stage, world, job.device)
        self.history, self.start = resume(self.engine, self.folder, config, stage, world)
        codecs = load_codecs(config.data.codecs, picture=stage.picture, device=job.device)
        # a resumed run keeps to the shards that it began with, also when the corpus has grown
        begun_with = self.folder.state(self.start).get("shards") if self.start else None
        self.stream = SampleStream(job.shards_dir, "train", config.data.seed, shards=begun_with, damage=config.data.damage)
        self.loader = BatchLoader(self.stream, config.data, codecs, stage.batch)
        self.places = split_batch(stage.batch, world, rank, config.micro_batch(stage, world))
        self.face = face_for(config, stage)
        self.on_metrics = job.on_metrics_factory() if job.on_metrics_factory and rank == 0 else ignore_metrics

    def run(self) -> Outcome:
        """Train from where the stage stands to its end, and leave its weights in the run folder."""
        if not self.start:
            self.history.fixed = self.fixed_losses()
            self.on_metrics(0, prefixed("fixed", self.history.fixed))
        batches = self.batches(range(self.start, self.stage.steps))
        for step in range(self.start, self.stage.steps):
            metrics = self.train_step(step, batches)
            self.history.add(metrics, first=step == self.start)
            check_finite(metrics, step)
            self.on_metrics(step + 1, metrics)
            if (step + 1) % self.config.checkpoint.every == 0 or step + 1 == self.stage.steps:
                state = checkpoint_state(self.config, self.stage, self.history) | {"shards": self.stream.shards}
                save_state(self.engine, self.folder, step + 1, state, self.config.checkpoint.keep)
        return self.finish()

    def train_step(self, step: int, batches: Iterator[Loaded]) -> dict[str, float]:
        """One optimizer step of the global batch: its metrics, the same on all workers."""
        meter, task = Meter(), task_at(self.config.seed, step, self.stage.tasks)
        lambda_m = lambda_at(self.face, step / max(1, self.stage.steps - 1))
        lr = self.engine.optimizer.param_groups[0]["lr"] = lr_at(self.stage, step)
        for places in self.places:
            loaded = meter.wait_for(batches)
            losses = self.losses(loaded, step, places, task, lambda_m)
            self.engine.backward(losses["total"])
            meter.add(losses, loaded)
            meter.grad_norm = grad_norm(self.engine, meter.grad_norm)
            self.engine.step()
        meter.grad_norm = grad_norm(self.engine, meter.grad_norm)
        return meter.metrics(task, self.stage) | {"lambda_m": lambda_m, "lr": lr}

    def losses(self, loaded: Loaded, step: int, places: tuple[int, ...], task: Task, lambda_m: float) -> dict[str, Tensor]:
        """Forward of one micro-batch: `places` are its samples' indices in the global batch of `step`."""
        draw, batch = Draw(self.config.seed, step, places), loaded.batch.to(self.engine.device)
        checkpointing = self.config.deepspeed.activation_checkpointing
        objective = self.config.objective.model_copy(update={"mix": self.stage.tasks})
        return total_loss(self.engine, batch, task, draw, objective, self.face, lambda_m, checkpointing=checkpointing)

    def batches(self, steps: range) -> Iterator[Loaded]:
        """This worker's micro-batches of those steps, in order, made ahead of their use."""
        keys = ((step, places) for step in steps for places in self.places)
        return prefetched(lambda key: self.loader.load(*key), keys, self.config.data.prefetch)

    def fixed_losses(self) -> dict[str, float]:
        """Losses on draws that the stage does not train on, always the same: mean over the steps that score them."""
        steps = range(self.stage.steps, self.stage.steps + self.config.fixed_steps)
        found: dict[str, list[float]] = {}
        batches = self.batches(steps)
        for step in steps:
            task, meter = task_at(self.config.seed, step, self.stage.tasks), Meter()
            for places in self.places:
                loaded = meter.wait_for(batches)
                with torch.no_grad():
                    meter.add(self.losses(loaded, step, places, task, 0.0), loaded)
            for name, value in meter.metrics(task, self.stage).items():
                if name in ("loss/video", "loss/audio", "loss/mask"):
                    found.setdefault(name.removeprefix("loss/"), []).append(value)
        return {name: sum(values) / len(values) for name, values in found.items()}

    def finish(self) -> Outcome:
        """Write the stage's weights and mark it done."""
        fixed = self.fixed_losses()
        self.on_metrics(self.stage.steps, prefixed("fixed", fixed))
        outcome = self.history.outcome(self.stage, fixed, self.parameters)
        weights = full_weights(self.engine)
        if dist.get_rank() == 0:
            self.folder.write_weights(weights)
            self.folder.write(done=True, step=self.stage.steps, outcome=asdict(outcome))
        dist.barrier()
        return outcome


def split_batch(batch: int, world: int, rank: int, micro: int) -> list[tuple[int, ...]]:
    """Places in the global batch that a worker computes, one tuple per forward; all workers' together are 0..batch-1."""
    share = batch // world
    mine = range(rank * share, (rank + 1) * share)
    return [tuple(mine[at : at + micro]) for at in range(0, share, micro)]


def build_model(job: Job, stage: StageConfig, rank: int) -> DualBranch:
    """The stage's parts of the model with the weights of the stage before; the key report goes to stage.json and the log."""
    torch.manual_seed(job.config.seed)
    model = DualBranch(job.config.model)
    for part in dict(model.named_children()):
        if part not in stage.parts:
            delattr(model, part)
    report = hand_over(model, job.run_dir, stage.takes_from, stage.starts_fresh)
    trainable = stage.trains or list(stage.parts)
    unknown = [part for part in trainable if not any(under(name, [part]) for name, _ in model.named_parameters())]
    if unknown:
        raise UserError(
            f"train.stages.{stage.name}.trains names no part of the model: {', '.join(unknown)}", kind="unknown-part"
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(under(name, trainable))
    if rank == 0:
        RunFolder(job.run_dir, stage.name).write(key_report=report.lines())
        log.info("%s", "\n".join(report.lines()))
    return model


def resume(engine: Any, folder: RunFolder, config: TrainConfig, stage: StageConfig, world: int) -> tuple[History, int]:
    """Restore the newest checkpoint, if there is one: the figures so far and the number of steps done.

    Raises UserError where it was made by another configuration or number of workers.
    """
    steps = folder.steps()
    if not steps:
        return History.begin(stage), 0
    state = folder.state(steps[-1])
    changed = changed_fields(state["settings"], settings_that_matter(config, stage))
    if changed:
        raise UserError(
            f"the checkpoint was made with another {', '.join(changed[:4])}",
            where=folder.checkpoint(steps[-1]),
            do="resume with the configuration it was started with, or use another --run folder",
            kind="changed-configuration",
        )
    if state["world_size"] != world:
        raise UserError(
            f"the checkpoint was made by {state['world_size']} workers, now there are {world}",
            where=folder.checkpoint(steps[-1]),
            do=f"set train.workers to {state['world_size']}",
            kind="changed-world-size",
        )
    load_state(engine, folder, steps[-1])
    return History(**state["history"]), steps[-1]


def settings_that_matter(config: TrainConfig, stage: StageConfig) -> dict[str, Any]:
    """What must not change between the start of a stage and its resumption: all that its losses depend on."""
    free = {"stages", "checkpoint", "workers", "device", "cpus_per_worker", "max_restarts"}
    exclude: Any = {**dict.fromkeys(free, True), "data": {"damage"}}
    return {**config.model_dump(mode="json", exclude=exclude), "stage": stage.model_dump(mode="json")}


def checkpoint_state(config: TrainConfig, stage: StageConfig, history: History) -> dict[str, Any]:
    """What state.json of a checkpoint holds beside its step."""
    return {"settings": settings_that_matter(config, stage), "world_size": dist.get_world_size(), "history": asdict(history)}


def check_finite(metrics: dict[str, float], step: int) -> None:
    """Raise UserError, on all workers alike, where the loss of the global batch is not a number."""
    if not math.isfinite(metrics["loss/total"]):
        tasks = {name.split("/")[1] for name in metrics if name.startswith("task/")}
        raise UserError(
            f"the loss is {metrics['loss/total']} at step {step + 1} (task {', '.join(tasks)})",
            do="lower the learning rate, or look at the samples of this step; the last checkpoint is whole",
            kind="loss-not-finite",
        )


def prefixed(prefix: str, figures: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in figures.items()}


def ignore_metrics(step: int, metrics: dict[str, float]) -> None:
    """The receiver on workers other than the first, and of runs that no one follows."""
