"""What every training worker does: one stage, under DeepSpeed, from its start or its last checkpoint to its weights.

In: a Job (plan, stage, shards folder, run folder) and an initialised torch.distributed. Out: the run folder of
`train.checkpoint`, metrics through `on_metrics`, and the stage's Outcome. All randomness is a function of
(seed, step, sample index), and one task is drawn per step, so neither losses nor graphs depend on the number of workers.
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
from torch import Tensor

from uniavgen.shards.errors import UserError
from uniavgen.train.checkpoint.checkpoint_conversion import Layout
from uniavgen.train.checkpoint.resume import (
    AVERAGE_FILE,
    Resumption,
    find,
    random_file,
    random_state,
    settings_that_matter,
)
from uniavgen.train.checkpoint.run_folder import RunFolder, hand_over, restored, under
from uniavgen.train.checkpoint.saving import save_checkpoint
from uniavgen.train.codec.registry import load_codecs
from uniavgen.train.config import StageConfig, TrainConfig, face_for, lr_at
from uniavgen.train.data.loader import LoadedBatch, make_loader, prefetched
from uniavgen.train.data.stage_stream import micro_batches, open_stream
from uniavgen.train.diagnostics.health import Rewind, Rewinds, StepHealth, fault_of, statistics_of
from uniavgen.train.diagnostics.metrics import History, Meter, Outcome, over_workers, pace
from uniavgen.train.diagnostics.run_warnings import OwnTime, Watch
from uniavgen.train.diagnostics.validation import Validation
from uniavgen.train.engine.deepspeed_engine import (
    StepGuard,
    agree_on,
    begin_engine,
    from_all,
    full_weights,
    release,
)
from uniavgen.train.engine.ema import WeightAverage
from uniavgen.train.flow_matching import Draw, task_at
from uniavgen.train.model.dual_branch import DualBranch
from uniavgen.train.model.objective import compute_losses, lambda_at
from uniavgen.train.model.pretrained import take_pretrained
from uniavgen.train.planning import flops_by_step
from uniavgen.train.tasks import Task

log = logging.getLogger(__name__)

OnMetrics = Callable[[int, dict[str, float]], None]
"""Called on the first worker after every step with the number of steps done and their metrics."""


class MetricsFactory(Protocol):
    """Makes the receiver of metrics inside the first worker; must pickle."""

    def __call__(self) -> OnMetrics: ...


@dataclass(frozen=True)
class Job:
    """What a worker is told. `device` is `cpu` or `cuda`; `accept_changes`: go on although the configuration changed."""

    config: TrainConfig
    stage: str
    shards_dir: str
    run_dir: str
    device: str = "cpu"
    on_metrics_factory: MetricsFactory | None = None
    accept_changes: bool = False


@dataclass(frozen=True)
class Micro:
    """A micro-batch that was computed: what may be told of it if its step turns out bad."""

    places: tuple[int, ...]
    loaded: LoadedBatch
    losses: dict[str, Tensor]


def train_stage(job: Job) -> Outcome | None:
    """Train a stage on this worker, going back to a checkpoint where its health asks for it; None where asked to stop."""
    while True:
        trainer = StageTrainer(job)
        try:
            return trainer.run()
        except Rewind:
            release(trainer.engine)
        # the trainer and its engine hold one another, and their memory is needed before the next are built
        del trainer
        gc.collect()
        if job.device == "cuda":
            torch.cuda.empty_cache()


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
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        found = find(self.folder, config, stage, trained, accept_changes=job.accept_changes)
        self.engine: Any = begin_engine(
            model, config, stage, world, job.device, universal=bool(found and found.universal)
        )
        self.guard = StepGuard(self.engine, stage.grad_clip)
        self.start, self.history, self.health = 0, History.begin(stage), StepHealth()
        if found:
            found.load(self.engine)
            self.start, self.history = found.step, restored(History, found.state["history"])
            self.health = restored(StepHealth, found.state["health"])
        self.average = begin_average(self.engine, config.ema, found, self.folder)
        # as the first worker reads them: all must leave out the same steps
        self.rewinds = Rewinds(**from_all(self.folder.read().get("rewinds", {}))[0])
        self.watch = Watch(self.engine, config.health)
        codecs = load_codecs(config.data.codecs, with_video=stage.has_video, device=job.device)
        # a resumed run keeps to the shards that it began with, also when the corpus has grown
        begun_with = found.state.get("shards") if found else None
        self.stream = open_stream(config, stage, job.shards_dir, job.run_dir, begun_with)
        # and to the latents that it began with: cached ones are of other windows than those encoded on line
        latents = found.state.get("latents", "") if found else None
        self.loader = make_loader(self.stream, config.data, stage, codecs, latents)
        if rank == 0:
            self.folder.tell("latents", self.loader.source)
        self.share = (world, rank, config.micro_batch(stage, world))
        self.validation: Validation | None = None
        if config.validation.every:
            seen_before = found.state.get("val_shards") if found else None
            self.validation = Validation(config, stage, job.shards_dir, codecs, seen_before)
        agree_on(
            "shards or cached latents",
            [self.stream.shards, self.validation and self.validation.shards, self.loader.latents],
        )
        self.face, self.flops_at = face_for(config, stage), flops_by_step(config, stage, self.stream)
        self.on_metrics = job.on_metrics_factory() if job.on_metrics_factory and rank == 0 else ignore_metrics

    def run(self) -> Outcome | None:
        """Train from where the stage stands to its end, and leave its weights in the run folder; None where asked to stop."""
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
            if (step + 1) % self.config.health.watch_every == 0:
                for text in self.watch.look():
                    self.tell("warning", text, step=step + 1)
                self.on_metrics(step + 1, prefixed("output_norm", self.watch.output_norms))
            if self.validation and (step + 1) % self.config.validation.every == 0:
                self.on_metrics(step + 1, self.validation.losses(self.engine))
            done = self.stage.steps if step == steps[-1] else step + 1
            # between bad steps the state may be the cause of them: then it is saved after the next good one
            due = (
                done // self.config.checkpoint.every > saved // self.config.checkpoint.every
                and not self.health.bad
            )
            if due or asked_to_stop or done == self.stage.steps:
                self.save(done)
                saved = done
            if asked_to_stop and done < self.stage.steps:
                self.tell("stopped", f"asked to stop: step {done} of {self.stage.steps} is saved", step=done)
                return None
        return self.finish()

    def train_step(self, step: int, batches: Iterator[LoadedBatch]) -> tuple[dict[str, float], bool]:
        """One optimizer step of the global batch: its metrics, and whether to stop after it; the same on all workers.

        A bad step is left out on all of them alike. Raises Rewind and UserError as `leave_out` does.
        """
        meter, task = Meter(), task_at(self.config.seed, step, self.stage.tasks)
        lambda_m = lambda_at(self.face, step / max(1, self.stage.steps - 1))
        lr = self.engine.optimizer.param_groups[0]["lr"] = lr_at(self.stage, step)
        limits = self.health.limits(self.config.health, task)
        seen: list[Micro] = []
        own, loss, asked_to_stop = OwnTime(self.engine.device), 0.0, False
        micros = self.places_at(step)
        for places in micros:
            details: dict[str, Tensor] = {}
            with own.running():
                loaded = meter.wait_for(batches)
                losses = self.losses(loaded, step, places, task, lambda_m, details)
            seen.append(Micro(places, loaded, {name: value.detach() for name, value in losses.items()}))
            self.engine.backward(losses["total"])
            meter.add(losses, loaded, details)
            if len(seen) == len(micros):
                loss, asked_to_stop = self.agree(seen)
                self.guard.open(refuse=not loss <= limits[0], limit=limits[1])
            self.engine.step()
        norm, taken = self.guard.norm, self.guard.taken
        if taken and self.average:
            self.average.update()
        metrics = meter.metrics(task, self.stage) | {"grad_norm": norm, "lambda_m": lambda_m, "lr": lr}
        metrics |= {"skipped": float(not taken)} | pace(self.flops_at(step), metrics["time/samples_per_s"])
        self.watch.add(own.seconds(), meter.waited, metrics["time/step_s"])
        if self.config.trace:
            write_trace(self.folder.path / f"trace-{dist.get_rank()}.jsonl", step, task, seen)
        fault = fault_of(loss, norm, limits)
        if taken:
            self.health.take(self.config.health, task, loss, norm)
        elif not self.scale_was_too_large(loss):
            self.leave_out(step, task, fault, seen)
        return metrics, asked_to_stop

    def agree(self, seen: Sequence[Micro]) -> tuple[float, bool]:
        """The loss of the global batch, and whether someone asked the run to stop; the same on all workers."""
        loss = sum(float(micro.losses["total"]) for micro in seen) / len(seen) / dist.get_world_size()
        asked = dist.get_rank() == 0 and self.folder.stop_request.exists()
        together = over_workers([loss, float(asked)])
        return together[0], together[1] > 0

    def scale_was_too_large(self, loss: float) -> bool:
        """Whether fp16's loss scale is why a step was not taken: DeepSpeed lowers it and goes on, which is no fault."""
        return self.config.deepspeed.dtype == "fp16" and not self.guard.refuse and loss == loss

    def leave_out(self, step: int, task: Task, fault: str, seen: Sequence[Micro]) -> None:
        """Tell of a bad step, with its samples and what their tensors look like.

        After too many in a row, raises Rewind on all workers, or UserError with the verdict where that was done enough.
        """
        count = self.health.leave(step)
        samples = [micro for micros in from_all([described(micro) for micro in seen]) for micro in micros]
        self.tell("skipped", f"step {step + 1} is left out ({task}): {fault}", step=step + 1, samples=samples)
        if count < self.config.health.rewind_after:
            return
        self.rewinds.refuse_more(self.config.health, self.health.bad, fault, self.folder.events)
        last = from_all(self.folder.steps())[0]
        if dist.get_rank() == 0:
            self.folder.write(rewinds=asdict(self.rewinds.after(self.health.bad)))
        back = (
            f"{count} bad steps in a row: back to step {last[-1] if last else 0}, and without them from there"
        )
        self.tell("rewind", back, steps=[bad + 1 for bad in self.health.bad])
        dist.barrier()
        raise Rewind

    def losses(
        self,
        loaded: LoadedBatch,
        step: int,
        places: tuple[int, ...],
        task: Task,
        lambda_m: float,
        details: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Forward of one micro-batch: `places` are its samples' indices in the global batch of `step`."""
        draw, batch = Draw(self.config.seed, step, places), loaded.batch.to(self.engine.device)
        checkpointing = self.config.deepspeed.activation_checkpointing
        objective = self.config.objective.model_copy(update={"mix": self.stage.tasks})
        return compute_losses(
            self.engine,
            batch,
            task,
            draw,
            objective,
            self.face,
            lambda_m,
            checkpointing=checkpointing,
            details=details,
        )

    def places_at(self, step: int) -> list[tuple[int, ...]]:
        """This worker's places in the batch of a step, one tuple per forward."""
        return micro_batches(step, self.stream, self.stage, *self.share)

    def batches(self, steps: Sequence[int]) -> Iterator[LoadedBatch]:
        """This worker's micro-batches of those steps, in order, made ahead of their use."""
        keys = ((step, places) for step in steps for places in self.places_at(step))
        return prefetched(lambda key: self.loader.load(*key), keys, self.config.data.prefetch)

    def fixed_losses(self) -> dict[str, float]:
        """Losses on draws that the stage does not train on, always the same: mean over the steps that score them."""
        steps = range(self.stage.steps, self.stage.steps + self.config.fixed_steps)
        found: dict[str, list[float]] = {}
        batches = self.batches(steps)
        for step in steps:
            task, meter = task_at(self.config.seed, step, self.stage.tasks), Meter()
            for places in self.places_at(step):
                loaded = meter.wait_for(batches)
                with torch.no_grad():
                    meter.add(self.losses(loaded, step, places, task, 0.0), loaded)
            for name, value in meter.metrics(task, self.stage).items():
                if name in ("loss/video", "loss/audio", "loss/mask"):
                    found.setdefault(name.removeprefix("loss/"), []).append(value)
        return {name: sum(values) / len(values) for name, values in found.items()}

    def save(self, step: int) -> None:
        """Write a checkpoint after so many steps. All workers call this; raises UserError where the disk refuses."""
        state: dict[str, Any] = {
            "settings": settings_that_matter(self.config, self.stage),
            "layout": asdict(Layout.of(self.config, dist.get_world_size())),
            "history": asdict(self.history),
            "health": self.health.as_dict(),
            "shards": self.stream.shards,
            "val_shards": self.validation.shards if self.validation else None,
            "latents": self.loader.latents,
            "tracking": tracked_as(self.folder),
        }
        tensors = {random_file(dist.get_rank()): random_state()}
        if self.average:
            state["average_updates"] = self.average.updates
            whole = self.average.whole()
            tensors |= {AVERAGE_FILE: whole} if whole else {}
        save_checkpoint(self.engine, self.folder, step, state, self.config.checkpoint, tensors)

    def finish(self) -> Outcome:
        """Write the stage's weights and mark it done."""
        fixed = self.fixed_losses()
        self.on_metrics(self.stage.steps, prefixed("fixed", fixed))
        self.watch.look()
        self.on_metrics(self.stage.steps, prefixed("output_norm", self.watch.output_norms))
        outcome = self.history.outcome(self.stage, fixed, self.parameters)
        weights = full_weights(self.engine)
        average = self.average.whole() if self.average else None
        if dist.get_rank() == 0:
            self.folder.write_weights(weights, average)
            self.folder.write(done=True, step=self.stage.steps, outcome=asdict(outcome))
        dist.barrier()
        return outcome

    def tell(self, event: str, text: str, **figures: Any) -> None:
        """Note an event once, whoever calls."""
        if dist.get_rank() == 0:
            log.warning("%s", text)
            self.folder.tell(event, text, **figures)


def begin_average(
    engine: Any, decay: float, found: Resumption | None, folder: RunFolder
) -> WeightAverage | None:
    """The moving average that the configuration asks for, taken on from the checkpoint where that has one."""
    if not decay:
        return None
    average = WeightAverage(engine, decay)
    if found and (found.checkpoint / AVERAGE_FILE).is_file():
        with safe_open(found.checkpoint / AVERAGE_FILE, framework="pt") as tensors:
            average.restore(tensors.get_tensor, found.state["average_updates"])
    elif found and dist.get_rank() == 0:
        folder.tell("average", f"the checkpoint has no moving average: it begins at step {found.step}")
    return average


def described(micro: Micro) -> dict[str, Any]:
    """A micro-batch for the log: its samples, losses, and what its tensors look like."""
    tensors = {name: value for name, value in vars(micro.loaded.batch).items() if isinstance(value, Tensor)}
    return {
        "places": list(micro.places),
        "keys": micro.loaded.batch.keys,
        "losses": {name: float(value) for name, value in micro.losses.items()},
        "tensors": statistics_of(tensors),
    }


def write_trace(path: Path, step: int, task: Task, seen: Sequence[Micro]) -> None:
    """Append a step's samples and exact losses (hexadecimal floats) of this worker."""
    keys = {
        place: key for micro in seen for place, key in zip(micro.places, micro.loaded.batch.keys, strict=True)
    }
    losses = [{name: float(value).hex() for name, value in micro.losses.items()} for micro in seen]
    with path.open("a") as lines:
        lines.write(json.dumps({"step": step, "task": task, "keys": keys, "losses": losses}) + "\n")


def tracked_as(folder: RunFolder) -> dict[str, str]:
    """Where the run is recorded (MLflow's URI and run id), where its folder says so."""
    note = folder.path / "tracking.json"
    known: dict[str, str] = json.loads(note.read_text()) if note.is_file() else {}
    return known


def build_model(job: Job, stage: StageConfig, rank: int) -> DualBranch:
    """The stage's parts of the model with the weights of the stage before; the key report goes to stage.json and the log."""
    torch.manual_seed(job.config.seed)
    model = DualBranch(job.config.model)
    for part in dict(model.named_children()):
        if part not in stage.parts:
            delattr(model, part)
    report = hand_over(model, job.run_dir, stage.takes_from, stage.starts_fresh)
    named = {
        name: path
        for name, path in (("video", stage.pretrained.video), ("audio", stage.pretrained.audio))
        if path
    }
    pretrained = take_pretrained(model, named, stage.pretrained.skip, report.taken)
    lines = [*report.lines(), *(f"  {name} from {named[name]}: {told}" for name, told in pretrained.items())]
    trainable = stage.trains or list(stage.parts)
    unknown = [
        part for part in trainable if not any(under(name, [part]) for name, _ in model.named_parameters())
    ]
    if unknown:
        raise UserError(
            f"train.stages.{stage.name}.trains names no part of the model: {', '.join(unknown)}",
            kind="unknown-part",
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(under(name, trainable))
    if rank == 0:
        RunFolder(job.run_dir, stage.name).write(key_report=lines)
        log.info("%s", "\n".join(lines))
    return model


def prefixed(prefix: str, figures: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in figures.items()}


def ignore_metrics(step: int, metrics: dict[str, float]) -> None:
    """The receiver on workers other than the first, and of runs that no one follows."""
