"""Metrics of one training step, of the steps so far (`History`), and of a finished stage (`Outcome`)."""

from __future__ import annotations

import resource
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import torch
import torch.distributed as dist
from torch import Tensor

from uniavgen.train.config import StageConfig
from uniavgen.train.data.loader import LoadedBatch
from uniavgen.train.engine.collectives import all_reduce_sum
from uniavgen.train.planning import PEAK_TFLOPS
from uniavgen.train.tasks import Task

LOSS_WINDOW = 10
"""Most steps over which the losses at start and end are averaged: one round of the paper's task mix."""
TIME_BUCKETS = 5
"""Equal parts of the diffusion time 0..1, each with its own loss. Heuristic."""
COUNTS = ("short", "no_voice", "damaged", "gone", "reference_inside", "speech_cut")
"""Counts of the loader (`LoadedBatch.counts`)."""


@dataclass
class Outcome:
    """Result of a stage. Losses are by modality (video, audio, mask).

    `loss_start` and `loss_end` are means over the first and the last training steps. `fixed_start` and
    `fixed_end` are measured before and after training on the same draws, which training does not use, so that
    small changes show. `samples_per_s` and `data_wait_share` do not count the first step, which has start-up
    costs.
    """

    steps: int = 0
    seconds: float = 0.0
    loss_start: dict[str, float] = field(default_factory=dict)
    loss_end: dict[str, float] = field(default_factory=dict)
    fixed_start: dict[str, float] = field(default_factory=dict)
    fixed_end: dict[str, float] = field(default_factory=dict)
    samples_per_s: float = 0.0
    data_wait_share: float = 0.0
    counts: dict[str, float] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)


@dataclass
class History:
    """Values of the steps so far from which the Outcome is computed. Saved in checkpoints.

    `fixed_from`: the step whose draws are the first fixed ones (0: the stage's last). It stays where it was
    if the stage is extended, so that the losses before and after are of the same draws.
    """

    window: int
    first: dict[str, list[float]] = field(default_factory=dict)
    last: dict[str, list[float]] = field(default_factory=dict)
    fixed: dict[str, float] = field(default_factory=dict)
    fixed_from: int = 0
    counts: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0
    timed_seconds: float = 0.0
    timed_samples: float = 0.0
    waited: float = 0.0

    @staticmethod
    def begin(stage: StageConfig) -> History:
        return History(window=max(1, min(LOSS_WINDOW, stage.steps // 4)), fixed_from=stage.steps)

    def add(self, metrics: dict[str, float], *, first: bool) -> None:
        """Add the metrics of a step. `first`: it is the first step since the process started."""
        for name in ("video", "audio", "mask"):
            value = metrics.get(f"loss/{name}")
            if value is not None:
                start, end = self.first.setdefault(name, []), self.last.setdefault(name, [])
                if self.steps < self.window:
                    start.append(value)
                end.append(value)
                del end[: -self.window]
        for name in COUNTS:
            self.counts[name] = self.counts.get(name, 0) + metrics[f"samples/{name}"]
        self.steps += 1
        self.seconds += metrics["time/step_s"]
        if not first:
            self.timed_seconds += metrics["time/step_s"]
            self.timed_samples += metrics["time/samples_per_s"] * metrics["time/step_s"]
            self.waited += metrics["time/data_wait_s"]

    def outcome(self, stage: StageConfig, fixed: dict[str, float], parameters: dict[str, int]) -> Outcome:
        timed = max(self.timed_seconds, 1e-9)
        return Outcome(
            steps=self.steps,
            seconds=self.seconds,
            loss_start={name: sum(values) / len(values) for name, values in self.first.items() if values},
            loss_end={name: sum(values) / len(values) for name, values in self.last.items()},
            fixed_start=self.fixed,
            fixed_end=fixed,
            samples_per_s=self.timed_samples / timed,
            data_wait_share=self.waited / timed,
            counts=self.counts,
            parameters=parameters,
        )


class StepMetrics:
    """Collects values of one step on one rank, and combines those of all ranks.

    While the step runs nothing is computed or copied from the device; `metrics` does that after the step.
    """

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.waited = 0.0
        self.samples = 0
        self.counts: Counter[str] = Counter()
        self.micros: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []

    def wait_for(self, batches: Iterator[LoadedBatch]) -> LoadedBatch:
        """The next batch. The time of this call counts as waiting for data."""
        started = time.monotonic()
        loaded = next(batches)
        self.waited += time.monotonic() - started
        return loaded

    def add(
        self, losses: dict[str, Tensor], loaded: LoadedBatch, details: dict[str, Tensor] | None = None
    ) -> None:
        """Add a micro-batch: its losses, and the `details` of `compute_losses`."""
        self.samples += len(loaded.batch.keys)
        self.counts += loaded.counts
        self.micros.append((detached(losses), detached(details or {})))

    def metrics(self, task: Task, stage: StageConfig) -> dict[str, float]:
        """Means of losses over the global batch, sums of counts, times of the slowest rank.

        All ranks call this.

        There is no loss for a modality that the task does not generate or the stage does not have.
        """
        rank, world = dist.get_rank(), dist.get_world_size()
        losses, values = self.micros[0][0], self.sums()
        # each rank sets its own two entries, so that the sum over ranks keeps them apart
        values["times"] = [0.0] * (2 * world)
        values["times"][2 * rank : 2 * rank + 2] = time.monotonic() - self.started, self.waited
        sums = sum_lists_over_ranks(values)
        passes, times = len(self.micros) * world, sums["times"]
        metrics = {f"loss/{name}": sums[name][0] / passes for name in losses}
        metrics |= {f"samples/{name}": sums[name][0] for name in COUNTS}
        scored = stage.scored(task)
        for name in {"video", "audio"} - set(scored):
            del metrics[f"loss/{name}"]
        if not stage.has_video:
            del metrics["loss/mask"]
        metrics |= {f"task/{task}/{name}": metrics[f"loss/{name}"] for name in scored}
        metrics |= {"time/step_s": max(times[::2]), "time/data_wait_s": max(times[1::2])}
        metrics["time/samples_per_s"] = self.samples * world / metrics["time/step_s"]
        return metrics | detail_metrics(sums, task, scored, passes, metrics["time/step_s"])

    def sums(self) -> dict[str, list[float]]:
        """Losses, details and counts of this rank, each summed over the micro-batches of the step."""
        sums = {name: [float(self.counts[name])] for name in COUNTS}
        for losses, details in self.micros:
            for name, values in (
                {name: [float(loss)] for name, loss in losses.items()} | summed(details)
            ).items():
                sums[name] = [a + b for a, b in zip(sums.get(name, [0.0] * len(values)), values, strict=True)]
        return sums


def detail_metrics(
    sums: dict[str, list[float]], task: Task, scored: list[str], passes: int, seconds: float
) -> dict[str, float]:
    """Losses by task, modality and diffusion time, mask IoU by interaction layer, tokens per second.

    `sums`: over all ranks and their `passes` forward passes.
    """
    metrics = {}
    for name in scored:
        totals, counts = sums.get(f"{name}_by_time", []), sums.get(f"{name}_count", [])
        for bucket, (total, count) in enumerate(zip(totals, counts, strict=True)):
            if count:
                times = f"t{bucket / TIME_BUCKETS:.1f}-{(bucket + 1) / TIME_BUCKETS:.1f}"
                metrics[f"loss_at/{task}/{name}/{times}"] = total / count
    metrics |= {
        f"mask_iou/interaction-{layer:02d}": iou / passes
        for layer, iou in enumerate(sums.get("mask_iou", []))
    }
    if "tokens" in sums:
        metrics["time/tokens_per_s"] = sums["tokens"][0] / seconds
    return metrics


def hardware_metrics(flops: float, samples_per_s: float) -> dict[str, float]:
    """Use of the hardware: the model's TFLOP/s per rank, MFU if the GPU's peak is known, peak memory.

    `flops`: of training on one sample.
    """
    speed = flops * samples_per_s / dist.get_world_size() / 1e12
    metrics = {"compute/tflops_per_s": speed}
    if dist.get_backend() == "nccl":
        name = torch.cuda.get_device_name().lower()
        peak = next((tflops for gpu, tflops in PEAK_TFLOPS.items() if gpu in name), None)
        if peak:
            metrics["compute/mfu"] = speed / peak
        metrics["memory/device_peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return metrics | {"memory/host_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def detached(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in tensors.items()}


def summed(details: dict[str, Tensor]) -> dict[str, list[float]]:
    """Details of a micro-batch as lists that can be added: losses [TIME_BUCKETS] and counts, others as is."""
    lists: dict[str, list[float]] = {
        name: details[name].flatten().tolist() for name in ("mask_iou", "tokens") if name in details
    }
    for name in ("video", "audio"):
        if name in details:
            sums, counts = [0.0] * TIME_BUCKETS, [0.0] * TIME_BUCKETS
            for loss, at in zip(details[name].tolist(), details[f"{name}_time"].tolist(), strict=True):
                bucket = min(max(int(at * TIME_BUCKETS), 0), TIME_BUCKETS - 1)
                sums[bucket] += loss
                counts[bucket] += 1
            lists |= {f"{name}_by_time": sums, f"{name}_count": counts}
    return lists


def sum_lists_over_ranks(lists: dict[str, list[float]]) -> dict[str, list[float]]:
    """Sums over ranks of lists with the same names and sizes, in one all-reduce. All ranks call this."""
    sums = iter(all_reduce_sum([value for values in lists.values() for value in values]))
    return {name: list(islice(sums, len(values))) for name, values in lists.items()}
