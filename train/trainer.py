"""The training loop of one stage, as each rank runs it: from its start or its last checkpoint to its weights.

All randomness is a function of (seed, step, sample index), and one task is drawn per step, so neither losses
nor graphs depend on the number of ranks. The model is reached through its family (`train.model.family`).
"""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn

from uniavgen.shards.errors import UserError
from uniavgen.train.checkpoint.changes import settings_that_matter
from uniavgen.train.checkpoint.checkpoint_conversion import Layout
from uniavgen.train.checkpoint.resume import (
    EMA_FILE,
    Resumption,
    find_checkpoint,
    random_file,
    random_state,
)
from uniavgen.train.checkpoint.run_folder import KeyReport, RunFolder, hand_over, restored, take_weights
from uniavgen.train.checkpoint.saving import save_checkpoint
from uniavgen.train.checkpoint.trained_model import load_export
from uniavgen.train.config import StageConfig, TrainConfig, lr_at
from uniavgen.train.data.loader import LoadedBatch, prefetched
from uniavgen.train.data.stage_stream import micro_batches
from uniavgen.train.diagnostics.health import Rewind, Rewinds, StepHealth, fault_of, statistics_of
from uniavgen.train.diagnostics.metrics import History, Outcome, StepMetrics, hardware_metrics
from uniavgen.train.diagnostics.run_warnings import RankTime, RunWarnings
from uniavgen.train.engine.collectives import all_gather_object, all_reduce_sum
from uniavgen.train.engine.deepspeed_compat import release_engine
from uniavgen.train.engine.deepspeed_engine import StepGuard, create_engine, gather_weights, parameter_groups
from uniavgen.train.engine.ema import Ema
from uniavgen.train.flow_matching import Draw, task_at
from uniavgen.train.model.family import family_of
from uniavgen.train.model.parts import count_parameters, part_of, train_only
from uniavgen.train.planning import flops_by_step
from uniavgen.train.stage_data import DataSource, StageData
from uniavgen.train.tasks import Task

log = logging.getLogger(__name__)

OnMetrics = Callable[[int, dict[str, float]], None]
"""Called on rank 0 after every step with the number of steps done and their metrics."""


class MetricsFactory(Protocol):
    """Makes the receiver of metrics on rank 0; must pickle."""

    def __call__(self) -> OnMetrics: ...


@dataclass(frozen=True)
class Job:
    """One stage to train.

    `device` is `cpu` or `cuda`; `accept_changes`: resume although the configuration changed.
    """

    config: TrainConfig
    stage: str
    shards_dir: str
    run_dir: str
    device: str = "cpu"
    on_metrics_factory: MetricsFactory | None = None
    accept_changes: bool = False


@dataclass(frozen=True)
class MicroBatch:
    """A computed micro-batch, kept until its step is accepted, to report on it otherwise."""

    sample_indices: tuple[int, ...]
    loaded: LoadedBatch
    losses: dict[str, Tensor]


def train_stage(job: Job) -> Outcome | None:
    """Train a stage on this rank, and return to a checkpoint where step health asks for it.

    None if asked to stop.
    """
    while True:
        trainer = StageTrainer(job)
        try:
            return trainer.run()
        except Rewind:
            release_engine(trainer.engine)
        # trainer and engine reference each other, and their memory is needed for the next ones
        del trainer
        gc.collect()
        if job.device == "cuda":
            torch.cuda.empty_cache()


class StageTrainer:
    """One rank's part of one stage. Every rank creates one and calls `run`; all get the same Outcome."""

    def __init__(self, job: Job) -> None:
        """Raises UserError for weights, shards or a checkpoint that are missing or do not fit."""
        self.config, self.stage = job.config, job.config.stage(job.stage)
        config, stage = self.config, self.stage
        rank, world = dist.get_rank(), dist.get_world_size()
        self.folder = RunFolder(job.run_dir, stage.name)
        model = build_model(job, stage, rank)
        self.parameters = count_parameters(model)
        groups = parameter_groups(model.named_parameters(), stage)
        trained = [name for group in groups for name in group["names"]]
        resumed = find_checkpoint(self.folder, config, stage, trained, accept_changes=job.accept_changes)
        self.engine: Any = create_engine(
            model, config, stage, world, job.device, universal=bool(resumed and resumed.universal)
        )
        self.guard = StepGuard(self.engine, stage.grad_clip)
        self.start, self.history, self.health = 0, History.begin(stage), StepHealth()
        if resumed:
            resumed.load(self.engine, stage)
            self.start, self.history = resumed.step, restored(History, resumed.state["history"])
            # a checkpoint of 0.4 or older does not name the step
            self.history.fixed_from = self.history.fixed_from or resumed.state["settings"]["stage"]["steps"]
            self.health = restored(StepHealth, resumed.state["health"])
        self.ema = start_ema(self.engine, config.ema, resumed, self.folder)
        # from rank 0's view: all ranks must leave out the same steps
        self.rewinds = Rewinds(**all_gather_object(self.folder.read().get("rewinds", {}))[0])
        family = family_of(config.model)
        checkpointing = config.deepspeed.activation_checkpointing
        self.objective = family.objective(config.objective, stage, checkpointing=checkpointing)
        self.warnings = RunWarnings(self.engine, config.health, family)
        source = DataSource(
            config, stage, job.shards_dir, job.run_dir, job.device, accept_changes=job.accept_changes
        )
        self.data = StageData(source, self.start, resumed.state if resumed else None)
        self.stream, self.loader, self.validation = self.data.stream, self.data.loader, self.data.validation
        self.log_event("latents", self.loader.source)
        self.log_data_lines()
        self.share = (world, rank, config.micro_batch(stage, world))
        self.flops_at = flops_by_step(config, stage, self.stream)
        self.on_metrics = job.on_metrics_factory() if job.on_metrics_factory and rank == 0 else ignore_metrics

    def run(self) -> Outcome | None:
        """Train to the end of the stage, and leave its weights in the run folder. None if asked to stop."""
        if not self.start:
            self.history.fixed = self.fixed_losses()
            self.on_metrics(0, prefixed("fixed", self.history.fixed))
        steps = [step for step in range(self.start, self.stage.steps) if step not in self.rewinds.avoid]
        batches, saved = self.batches(steps), self.start
        for step in steps:
            metrics, asked_to_stop = self.train_step(step, batches)
            if not self.health.bad:
                self.history.add(metrics, first=step == steps[0])
            self.on_metrics(step + 1, metrics)
            self.check_periodically(step + 1)
            self.log_data_lines()
            done = self.stage.steps if step == steps[-1] else step + 1
            if asked_to_stop or self.must_save(done, saved):
                self.save(done)
                saved = done
            if asked_to_stop and done < self.stage.steps:
                text = f"asked to stop: step {done} of {self.stage.steps} is saved"
                self.log_event("stopped", text, step=done)
                return None
        return self.finish()

    def train_step(self, step: int, batches: Iterator[LoadedBatch]) -> tuple[dict[str, float], bool]:
        """One optimizer step of the global batch: its metrics, and whether to stop; the same on all ranks.

        All ranks skip a bad step. Raises Rewind and UserError as `skip_step` does.
        """
        step_metrics, task = StepMetrics(), task_at(self.config.seed, step, self.stage.tasks)
        weights = self.objective.weights(step / max(1, self.stage.steps - 1))
        lr = lr_at(self.stage, step)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        limits = self.health.limits(self.config.health, task)
        computed: list[MicroBatch] = []
        rank_time, loss, asked_to_stop = RankTime(self.engine.device), 0.0, False
        all_indices = self.sample_indices_at(step)
        for indices in all_indices:
            details: dict[str, Tensor] = {}
            with rank_time.running():
                loaded = step_metrics.wait_for(batches)
                losses = self.losses(loaded, Draw(self.config.seed, step, indices), task, weights, details)
            detached = {name: value.detach() for name, value in losses.items()}
            computed.append(MicroBatch(indices, loaded, detached))
            self.engine.backward(losses["total"])
            step_metrics.add(losses, loaded, details)
            if len(computed) == len(all_indices):
                loss, asked_to_stop = self.global_loss(computed)
                self.guard.set_limits(skip=not loss <= limits[0], max_norm=limits[1])
            self.engine.step()
        norm, applied = self.guard.grad_norm, self.guard.applied
        if applied and self.ema:
            self.ema.update()
        metrics = step_metrics.metrics(task, self.stage) | {"grad_norm": norm, **weights, "lr": lr}
        metrics |= {"skipped": float(not applied)} | hardware_metrics(
            self.flops_at(step), metrics["time/samples_per_s"]
        )
        self.warnings.add(rank_time.seconds(), step_metrics.waited, metrics["time/step_s"])
        if self.config.trace:
            write_trace(self.folder.path / f"trace-{dist.get_rank()}.jsonl", step, task, computed)
        if applied:
            self.health.take(self.config.health, task, loss, norm)
        elif not self.loss_scale_was_too_large(loss):
            self.skip_step(step, task, fault_of(loss, norm, limits), computed)
        return metrics, asked_to_stop

    def losses(
        self,
        loaded: LoadedBatch,
        draw: Draw,
        task: Task,
        weights: dict[str, float],
        details: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Losses of one micro-batch."""
        batch = loaded.batch.to(self.engine.device)
        return self.objective.losses(self.engine, batch, task, draw, weights, details)

    def global_loss(self, computed: Sequence[MicroBatch]) -> tuple[float, bool]:
        """The loss of the global batch, and whether someone asked the run to stop; the same on all ranks."""
        loss = sum(float(micro.losses["total"]) for micro in computed) / len(computed) / dist.get_world_size()
        asked_to_stop = dist.get_rank() == 0 and self.folder.stop_request.exists()
        sums = all_reduce_sum([loss, float(asked_to_stop)])
        return sums[0], sums[1] > 0

    def loss_scale_was_too_large(self, loss: float) -> bool:
        """Whether fp16's loss scale was too large: DeepSpeed then skips the step and lowers the scale."""
        return self.config.deepspeed.dtype == "fp16" and not self.guard.skip and loss == loss

    def skip_step(self, step: int, task: Task, fault: str, computed: Sequence[MicroBatch]) -> None:
        """Log a bad step, with its samples and the statistics of their tensors.

        After too many in a row, raises Rewind on all ranks, or UserError if the stage has gone back often
        enough.
        """
        count = self.health.leave(step)
        per_rank = all_gather_object([describe(micro) for micro in computed])
        samples = [micro for micros in per_rank for micro in micros]
        self.log_event(
            "skipped", f"step {step + 1} skipped ({task}): {fault}", step=step + 1, samples=samples
        )
        if count < self.config.health.rewind_after:
            return
        self.rewinds.refuse_more(self.config.health, self.health.bad, fault, self.folder.events)
        saved_steps = all_gather_object(self.folder.steps())[0]
        if dist.get_rank() == 0:
            self.folder.write(rewinds=asdict(self.rewinds.after(self.health.bad)))
        target = saved_steps[-1] if saved_steps else 0
        text = f"{count} bad steps in a row: back to step {target}, to continue without them"
        self.log_event("rewind", text, steps=[bad + 1 for bad in self.health.bad])
        dist.barrier()
        raise Rewind

    def sample_indices_at(self, step: int) -> list[tuple[int, ...]]:
        """This rank's sample indices in the global batch of a step, one tuple per forward pass."""
        return micro_batches(step, self.stream, self.stage, *self.share)

    def batches(self, steps: Sequence[int]) -> Iterator[LoadedBatch]:
        """This rank's micro-batches of the steps, in order, loaded ahead of their use."""
        keys = ((step, indices) for step in steps for indices in self.sample_indices_at(step))
        return prefetched(lambda key: self.loader.load(*key), keys, self.config.data.prefetch)

    def fixed_losses(self) -> dict[str, float]:
        """Losses on fixed draws that the stage does not train on: mean over the steps that score them."""
        first = self.history.fixed_from or self.stage.steps
        steps = range(first, first + self.config.fixed_steps)
        values: dict[str, list[float]] = {}
        batches = self.batches(steps)
        for step in steps:
            task, step_metrics = task_at(self.config.seed, step, self.stage.tasks), StepMetrics()
            for indices in self.sample_indices_at(step):
                loaded = step_metrics.wait_for(batches)
                with torch.no_grad():
                    step_metrics.add(
                        self.losses(loaded, Draw(self.config.seed, step, indices), task, {}), loaded
                    )
            for name, value in step_metrics.metrics(task, self.stage).items():
                if name in ("loss/video", "loss/audio", "loss/mask"):
                    values.setdefault(name.removeprefix("loss/"), []).append(value)
        return {name: sum(of_name) / len(of_name) for name, of_name in values.items()}

    def check_periodically(self, done: int) -> None:
        """Diagnostics and validation losses, if they are due after `done` steps."""
        if done % self.config.health.watch_every == 0:
            for text in self.warnings.check():
                self.log_event("warning", text, step=done)
            self.on_metrics(done, prefixed("output_norm", self.warnings.output_norms))
        if self.validation and done % self.config.validation.every == 0:
            self.on_metrics(done, self.validation.losses(self.engine))
            if self.ema:
                with self.ema.applied():
                    self.on_metrics(done, self.validation.losses(self.engine, "validation_ema"))

    def must_save(self, done: int, saved: int) -> bool:
        """Whether a checkpoint is due.

        Between bad steps the state may be their cause: it waits for the next good step.
        """
        every = self.config.checkpoint.every
        return done == self.stage.steps or (done // every > saved // every and not self.health.bad)

    def save(self, step: int) -> None:
        """Write the checkpoint of `step`. All ranks call this; raises UserError if the disk refuses."""
        state: dict[str, Any] = {
            "settings": settings_that_matter(self.config, self.stage),
            "layout": asdict(Layout.of(self.config, dist.get_world_size())),
            "history": asdict(self.history),
            "health": self.health.as_dict(),
            **self.data.state(step),
            "tracking": read_tracking(self.folder),
        }
        tensors = {random_file(dist.get_rank()): random_state()}
        if self.ema:
            state["average_updates"] = self.ema.updates
            averaged = self.ema.gather()
            tensors |= {EMA_FILE: averaged} if averaged else {}
        save_checkpoint(self.engine, self.folder, step, state, self.config.checkpoint, tensors)

    def finish(self) -> Outcome:
        """Write the stage's weights and mark it done."""
        fixed = self.fixed_losses()
        self.on_metrics(self.stage.steps, prefixed("fixed", fixed))
        self.warnings.check()
        self.on_metrics(self.stage.steps, prefixed("output_norm", self.warnings.output_norms))
        outcome = self.history.outcome(self.stage, fixed, self.parameters)
        weights = gather_weights(self.engine)
        averaged = self.ema.gather() if self.ema else None
        if dist.get_rank() == 0:
            self.folder.write_weights(weights, averaged)
            self.folder.write(done=True, step=self.stage.steps, outcome=asdict(outcome))
        dist.barrier()
        return outcome

    def log_data_lines(self) -> None:
        for line in self.data.take_lines():
            self.log_event("samples", line)

    def log_event(self, event: str, text: str, **values: Any) -> None:
        """Write an event once, from rank 0."""
        if dist.get_rank() == 0:
            log.warning("%s", text)
            self.folder.log_event(event, text, **values)


def build_model(job: Job, stage: StageConfig, rank: int) -> nn.Module:
    """The model of a stage, with weights from the stage before and its trained parameters selected.

    The report on every weight goes to stage.json and the log.
    """
    torch.manual_seed(job.config.seed)
    family = family_of(job.config.model)
    model = family.build(family.parts(stage.name))
    pretrained = stage.pretrained
    if pretrained.export:
        report = take_export(model, Path(pretrained.export), list(pretrained.checkpoints))
    else:
        report = hand_over(model, job.run_dir, stage.takes_from, stage.starts_fresh)
    lines = report.lines() + family.load_pretrained(
        model, pretrained.checkpoints, pretrained.skip, report.taken
    )
    unknown = train_only(model, stage.trains)
    if unknown:
        raise UserError(
            f"train.stages.{stage.name}.trains names no part of the model: {', '.join(unknown)}",
            kind="unknown-part",
        )
    if rank == 0:
        RunFolder(job.run_dir, stage.name).write(key_report=lines)
        log.info("%s", "\n".join(lines))
    return model


def take_export(model: nn.Module, folder: Path, others: Sequence[str]) -> KeyReport:
    """Load an export into `model`, except the parts `others`, which come from other checkpoints.

    Raises UserError if the export is damaged or does not fit.
    """
    parts = {name for name, _ in model.named_children()} - set(others)
    exported = load_export(folder)[0].state_dict()
    tensors = {name: value for name, value in exported.items() if part_of(name) in parts}
    return take_weights(model, tensors, f"export {folder}", folder, others)


def start_ema(engine: Any, decay: float, resumed: Resumption | None, folder: RunFolder) -> Ema | None:
    """The moving average of the configuration, restored if the checkpoint has one."""
    if not decay:
        return None
    ema = Ema(engine, decay)
    if resumed and (resumed.checkpoint / EMA_FILE).is_file():
        with safe_open(resumed.checkpoint / EMA_FILE, framework="pt") as tensors:
            ema.restore(tensors.get_tensor, resumed.state["average_updates"])
    elif resumed and dist.get_rank() == 0:
        folder.log_event("average", f"the checkpoint has no moving average: it starts at step {resumed.step}")
    return ema


def describe(micro: MicroBatch) -> dict[str, Any]:
    """A micro-batch for the log: samples, losses, and statistics of its tensors."""
    tensors = {name: value for name, value in vars(micro.loaded.batch).items() if isinstance(value, Tensor)}
    return {
        "places": list(micro.sample_indices),
        "keys": micro.loaded.batch.keys,
        "losses": {name: float(value) for name, value in micro.losses.items()},
        "tensors": statistics_of(tensors),
    }


def write_trace(path: Path, step: int, task: Task, computed: Sequence[MicroBatch]) -> None:
    """Append a step's samples and exact losses (hexadecimal floats) of this rank."""
    keys = {
        index: key
        for micro in computed
        for index, key in zip(micro.sample_indices, micro.loaded.batch.keys, strict=True)
    }
    losses = [{name: float(value).hex() for name, value in micro.losses.items()} for micro in computed]
    with path.open("a") as lines:
        lines.write(json.dumps({"step": step, "task": task, "keys": keys, "losses": losses}) + "\n")


def read_tracking(folder: RunFolder) -> dict[str, str]:
    """Where the run is tracked (MLflow's URI and run id), if its folder says so."""
    path = folder.path / "tracking.json"
    tracking: dict[str, str] = json.loads(path.read_text()) if path.is_file() else {}
    return tracking


def prefixed(prefix: str, values: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in values.items()}


def ignore_metrics(step: int, metrics: dict[str, float]) -> None:
    """The receiver on ranks other than 0, and of runs that nobody tracks."""
