"""What every training worker does: one stage, under DeepSpeed, from its start or its last checkpoint to its weights.

In: a Job (plan, stage, shards folder, run folder) and an initialised torch.distributed. Out: the run folder of
`train.checkpoint`, metrics through `on_metrics`, and the stage's Outcome. All randomness is a function of
(seed, step, sample index), and one task is drawn per step, so neither losses nor graphs depend on the number of workers.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed as dist

from shards.errors import UserError
from shards.stream import SampleStream
from train.checkpoint import RunFolder, changed_fields, hand_over, under
from train.codec.registry import load_codecs
from train.data import BatchLoader, Loaded, prefetched
from train.engine import begin_engine, full_weights, grad_norm, load_state, save_state
from train.model.dual_branch import DualBranch
from train.model.face_modulation import lambda_at
from train.options import Task
from train.stages import StageConfig, TrainConfig, face_for, lr_at
from train.tasks import Draw, task_at, total_loss

log = logging.getLogger(__name__)

OnMetrics = Callable[[int, dict[str, float]], None]
"""Called on the first worker after every step with the number of steps done and their metrics."""
LOSS_WINDOW = 10
"""Steps over which the losses at the start and at the end of a stage are averaged."""


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


@dataclass
class Outcome:
    """What a stage came to. Losses are means over the first and last steps that scored the modality; `samples_per_s`
    and `data_wait_share` leave the first step out, which starts things up."""

    steps: int = 0
    seconds: float = 0.0
    loss_start: dict[str, float] = field(default_factory=dict)
    loss_end: dict[str, float] = field(default_factory=dict)
    samples_per_s: float = 0.0
    data_wait_share: float = 0.0
    counts: dict[str, float] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)


def train_stage(job: Job) -> Outcome:
    """Train one stage to its end. Every worker calls this; each returns the same Outcome. Raises UserError."""
    config, stage = job.config, job.config.stage(job.stage)
    rank, world = dist.get_rank(), dist.get_world_size()
    folder = RunFolder(job.run_dir, stage.name)
    model, parameters = build_model(job, stage, rank)
    engine = begin_engine(model, config, stage, world, job.device)
    history, start = resume(engine, folder, config, stage, world)
    codecs = load_codecs(config.data.codecs, picture=stage.picture, device=job.device)
    loader = BatchLoader(SampleStream(job.shards_dir, "train", config.data.seed), config.data, codecs, stage.batch)
    on_metrics = job.on_metrics_factory() if job.on_metrics_factory and rank == 0 else ignore_metrics
    objective, face = config.objective.model_copy(update={"mix": stage.tasks}), face_for(config, stage)

    micro_batches = split_batch(stage.batch, world, rank, config.micro_batch(stage, world))
    keys = ((step, indices) for step in range(start, stage.steps) for indices in micro_batches)
    batches = prefetched(lambda key: loader.load(*key), keys, config.data.prefetch)
    for step in range(start, stage.steps):
        meter = Meter()
        task = task_at(config.seed, step, stage.tasks)
        lambda_m = lambda_at(face, step / max(1, stage.steps - 1))
        lr = engine.optimizer.param_groups[0]["lr"] = lr_at(stage, step)
        for indices in micro_batches:
            loaded = meter.wait_for(batches)
            draw = Draw(config.seed, step, indices)
            losses = total_loss(engine, loaded.batch.to(engine.device), task, draw, objective, face, lambda_m)
            engine.backward(losses["total"])
            meter.add(losses, loaded)
            meter.grad_norm = grad_norm(engine, meter.grad_norm)
            engine.step()
        meter.grad_norm = grad_norm(engine, meter.grad_norm)
        metrics = meter.metrics(task, stage) | {"lambda_m": lambda_m, "lr": lr}
        history.add(metrics)
        check_finite(metrics, step, task)
        on_metrics(step + 1, metrics)
        if (step + 1) % config.checkpoint.every == 0 or step + 1 == stage.steps:
            save_state(engine, folder, step + 1, checkpoint_state(config, stage, world, history), config.checkpoint.keep)
    return finish(engine, folder, stage, history, parameters)


def split_batch(batch: int, world: int, rank: int, micro: int) -> list[tuple[int, ...]]:
    """Places in the global batch that a worker computes, one tuple per forward: consecutive, the same for any division."""
    share = batch // world
    mine = range(rank * share, (rank + 1) * share)
    return [tuple(mine[at : at + micro]) for at in range(0, share, micro)]


def build_model(job: Job, stage: StageConfig, rank: int) -> tuple[DualBranch, dict[str, int]]:
    """The stage's parts of the model with the weights of the stage before, and the number of parameters by part."""
    torch.manual_seed(job.config.seed)
    model = DualBranch(job.config.model)
    for part in dict(model.named_children()):
        if part not in stage.parts:
            delattr(model, part)
    fresh = stage.starts_fresh if stage.takes_from else list(stage.parts)
    report = hand_over(model, job.run_dir, stage.takes_from, fresh)
    trainable = stage.trains or list(stage.parts)
    unknown = [part for part in trainable if not any(under(name, [part]) for name, _ in model.named_parameters())]
    if unknown:
        raise UserError(f"stages.{stage.name}.trains names no part of the model: {', '.join(unknown)}", kind="unknown-part")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(under(name, trainable))
    if rank == 0:
        RunFolder(job.run_dir, stage.name).write(key_report=report.lines())
        for line in report.lines():
            log.info("%s", line)
    return model, model.parameter_counts()


def resume(engine: Any, folder: RunFolder, config: TrainConfig, stage: StageConfig, world: int) -> tuple[History, int]:
    """Restore the newest checkpoint, if there is one: the losses so far and the number of steps done.

    Raises UserError where it was made by another configuration or number of workers.
    """
    steps = folder.steps()
    if not steps:
        return History(), 0
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
    """What must not change between the start of a stage and its resumption: all that the losses depend on."""
    free = {"stages", "checkpoint", "workers", "device", "cpus_per_worker", "max_restarts"}
    return {**config.model_dump(mode="json", exclude=free), "stage": stage.model_dump(mode="json")}


def checkpoint_state(config: TrainConfig, stage: StageConfig, world: int, history: History) -> dict[str, Any]:
    return {"settings": settings_that_matter(config, stage), "world_size": world, "history": asdict(history)}


def check_finite(metrics: dict[str, float], step: int, task: Task) -> None:
    """Raise UserError, on all workers alike, where the loss of the global batch is not a number."""
    if not math.isfinite(metrics["loss/total"]):
        raise UserError(
            f"the loss is {metrics['loss/total']} at step {step + 1} (task {task})",
            do="lower the learning rate, or look at the samples of this step; the last checkpoint is whole",
            kind="loss-not-finite",
        )


def ignore_metrics(step: int, metrics: dict[str, float]) -> None:
    """Metrics of workers other than the first, and of runs that no one follows."""


def finish(engine: Any, folder: RunFolder, stage: StageConfig, history: History, parameters: dict[str, int]) -> Outcome:
    """Write the stage's weights and mark it done."""
    weights = full_weights(engine)
    outcome = history.outcome(stage, parameters)
    if dist.get_rank() == 0:
        folder.write_weights(weights)
        folder.write(done=True, step=stage.steps, outcome=asdict(outcome))
    dist.barrier()
    return outcome


@dataclass
class History:
    """Of the steps so far, what the Outcome needs; it is saved with each checkpoint."""

    first: dict[str, list[float]] = field(default_factory=dict)
    last: dict[str, list[float]] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0
    timed_steps: int = 0
    timed_seconds: float = 0.0
    waited: float = 0.0

    def add(self, metrics: dict[str, float]) -> None:
        for name in ("video", "audio", "mask"):
            value = metrics.get(f"loss/{name}")
            if value is not None:
                first, last = self.first.setdefault(name, []), self.last.setdefault(name, [])
                if len(first) < LOSS_WINDOW:
                    first.append(value)
                self.last[name] = [*last[1 - LOSS_WINDOW :], value]
        for name, value in metrics.items():
            if name.startswith("clips/"):
                self.counts[name.removeprefix("clips/")] = self.counts.get(name.removeprefix("clips/"), 0) + value
        self.steps += 1
        self.seconds += metrics["time/step_s"]
        if self.steps > 1:
            self.timed_steps += 1
            self.timed_seconds += metrics["time/step_s"]
            self.waited += metrics["time/data_wait_s"]

    def outcome(self, stage: StageConfig, parameters: dict[str, int]) -> Outcome:
        timed = max(self.timed_seconds, 1e-9)
        return Outcome(
            steps=self.steps,
            seconds=self.seconds,
            loss_start={name: sum(values) / len(values) for name, values in self.first.items()},
            loss_end={name: sum(values) / len(values) for name, values in self.last.items()},
            samples_per_s=self.timed_steps * stage.batch / timed,
            data_wait_share=self.waited / timed,
            counts=self.counts,
            parameters=parameters,
        )


class Meter:
    """Measures one step on one worker, and brings the workers' figures together."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.waited = 0.0
        self.grad_norm = 0.0
        self.micro_steps = 0
        self.losses: dict[str, torch.Tensor] = {}
        self.counts: Counter[str] = Counter()

    def wait_for(self, batches: Iterator[Loaded]) -> Loaded:
        """The next batch; the time until it is there is waiting for data."""
        asked = time.monotonic()
        loaded = next(batches)
        self.waited += time.monotonic() - asked
        return loaded

    def add(self, losses: dict[str, torch.Tensor], loaded: Loaded) -> None:
        self.micro_steps += 1
        self.counts += loaded.counts
        for name, value in losses.items():
            self.losses[name] = self.losses.get(name, torch.zeros_like(value)) + value.detach()

    def metrics(self, task: Task, stage: StageConfig) -> dict[str, float]:
        """Means of losses over the global batch, sums of counts, the slowest worker's times. All workers call this.

        A modality that the task does not generate, or that the stage does not have, has no loss.
        """
        names, counted = sorted(self.losses), ("short", "damaged", "reference_inside", "speech_cut")
        sums = torch.stack([self.losses[name].double() / self.micro_steps for name in names]).cpu()
        sums = torch.cat([sums / dist.get_world_size(), torch.tensor([self.counts[name] for name in counted]).double()])
        worst = torch.tensor([time.monotonic() - self.started, self.waited], dtype=torch.float64)
        reduce_over_workers(sums, dist.ReduceOp.SUM)
        reduce_over_workers(worst, dist.ReduceOp.MAX)
        found = dict(zip([*(f"loss/{n}" for n in names), *(f"clips/{n}" for n in counted)], sums.tolist(), strict=True))
        scored = [name for name in task.scored if stage.picture or name == "audio"]
        for name in {"video", "audio"} - set(scored):
            del found[f"loss/{name}"]
        if not stage.picture:
            del found["loss/mask"]
        found |= {f"task/{task}/{name}": found[f"loss/{name}"] for name in scored}
        seconds, waited = worst.tolist()
        times = {"time/step_s": seconds, "time/data_wait_s": waited, "time/samples_per_s": stage.batch / seconds}
        return found | times | {"grad_norm": self.grad_norm}


def reduce_over_workers(values: torch.Tensor, operation: Any) -> None:
    """All-reduce figures that stand on the CPU, in place, on whatever device the workers talk over."""
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    moved = values.to(device)
    dist.all_reduce(moved, operation)
    values.copy_(moved)
