"""Figures of a training run: of one step, of the steps so far, and of a finished stage."""

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
from uniavgen.train.planning import PEAK_TFLOPS
from uniavgen.train.tasks import Task

LOSS_WINDOW = 10
"""Most steps over which the losses at the start and at the end of a stage are averaged: one round of the paper's mix."""
TIME_BUCKETS = 5
"""Equal parts of the diffusion time 0..1 by which losses are told apart; our choice."""
COUNTS = ("short", "damaged", "reference_inside", "speech_cut")
"""What the loader counts, in the order in which it crosses the workers."""


@dataclass
class Outcome:
    """What a stage came to; losses by modality (video, audio, mask).

    `loss_start` and `loss_end` are means over the first and the last training steps. `fixed_start` and `fixed_end` are
    taken before and after training on the same draws, which training does not use: they tell of small changes too.
    `samples_per_s` and `data_wait_share` leave the first step out, which starts things up.
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
    """Of the steps so far, what the Outcome needs; it is saved with each checkpoint."""

    window: int
    first: dict[str, list[float]] = field(default_factory=dict)
    last: dict[str, list[float]] = field(default_factory=dict)
    fixed: dict[str, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0
    timed_seconds: float = 0.0
    timed_samples: float = 0.0
    waited: float = 0.0

    @staticmethod
    def begin(stage: StageConfig) -> History:
        return History(window=max(1, min(LOSS_WINDOW, stage.steps // 4)))

    def add(self, metrics: dict[str, float], *, first: bool) -> None:
        """Take in a step's metrics; `first` marks the first step since the process started."""
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


class Meter:
    """Measures one step on one worker, and brings the workers' figures together.

    Nothing is computed or brought from the device while the step runs: `metrics` does, once it is done.
    """

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.waited = 0.0
        self.samples = 0
        self.counts: Counter[str] = Counter()
        self.micros: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []

    def wait_for(self, batches: Iterator[LoadedBatch]) -> LoadedBatch:
        """The next batch; the time until it is there is waiting for data."""
        asked = time.monotonic()
        loaded = next(batches)
        self.waited += time.monotonic() - asked
        return loaded

    def add(
        self, losses: dict[str, Tensor], loaded: LoadedBatch, figures: dict[str, Tensor] | None = None
    ) -> None:
        """Take in a micro-batch: its losses, and the `figures` of `train.tasks.total_loss` where there are any."""
        self.samples += len(loaded.batch.keys)
        self.counts += loaded.counts
        self.micros.append((detached(losses), detached(figures or {})))

    def metrics(self, task: Task, stage: StageConfig) -> dict[str, float]:
        """Means of losses over the global batch, sums of counts, the slowest worker's times. All workers call this.

        A modality that the task does not generate, or that the stage does not have, has no loss.
        """
        rank, world = dist.get_rank(), dist.get_world_size()
        losses, own = self.micros[0][0], self.sums()
        # each worker's times have places of their own in the sum
        own["times"] = [0.0] * (2 * world)
        own["times"][2 * rank : 2 * rank + 2] = time.monotonic() - self.started, self.waited
        sums = sums_over_workers(own)
        passes, times = len(self.micros) * world, sums["times"]
        found = {f"loss/{name}": sums[name][0] / passes for name in losses}
        found |= {f"samples/{name}": sums[name][0] for name in COUNTS}
        scored = stage.scored(task)
        for name in {"video", "audio"} - set(scored):
            del found[f"loss/{name}"]
        if not stage.has_video:
            del found["loss/mask"]
        found |= {f"task/{task}/{name}": found[f"loss/{name}"] for name in scored}
        found |= {"time/step_s": max(times[::2]), "time/data_wait_s": max(times[1::2])}
        found["time/samples_per_s"] = self.samples * world / found["time/step_s"]
        return found | details(sums, task, scored, passes, found["time/step_s"])

    def sums(self) -> dict[str, list[float]]:
        """This worker's losses, figures and counts, each summed over the step's micro-batches."""
        sums = {name: [float(self.counts[name])] for name in COUNTS}
        for losses, figures in self.micros:
            for name, values in (
                {name: [float(loss)] for name, loss in losses.items()} | summed(figures)
            ).items():
                sums[name] = [a + b for a, b in zip(sums.get(name, [0.0] * len(values)), values, strict=True)]
        return sums


def details(
    sums: dict[str, list[float]], task: Task, scored: list[str], passes: int, seconds: float
) -> dict[str, float]:
    """What the means hide, out of sums over all workers and `passes` forward passes: losses by modality, task and part of
    the diffusion time, the masks' IoU by interaction (first one first), tokens a second."""
    found = {}
    for name in scored:
        totals, counts = sums.get(f"{name}_by_time", []), sums.get(f"{name}_count", [])
        for bucket, (total, count) in enumerate(zip(totals, counts, strict=True)):
            if count:
                times = f"t{bucket / TIME_BUCKETS:.1f}-{(bucket + 1) / TIME_BUCKETS:.1f}"
                found[f"loss_at/{task}/{name}/{times}"] = total / count
    found |= {
        f"mask_iou/interaction-{place:02d}": iou / passes
        for place, iou in enumerate(sums.get("mask_iou", []))
    }
    if "tokens" in sums:
        found["time/tokens_per_s"] = sums["tokens"][0] / seconds
    return found


def pace(flops: float, samples_per_s: float) -> dict[str, float]:
    """What so many samples a second, of so many FLOPs each, make of the hardware: the model's TFLOP/s per worker, the share
    of the peak (MFU) on a card whose peak is known, and the most memory held since the start."""
    speed = flops * samples_per_s / dist.get_world_size() / 1e12
    found = {"compute/tflops_per_s": speed}
    if dist.get_backend() == "nccl":
        name = torch.cuda.get_device_name().lower()
        peak = next((tflops for card, tflops in PEAK_TFLOPS.items() if card in name), None)
        if peak:
            found["compute/mfu"] = speed / peak
        found["memory/device_peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return found | {"memory/host_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def detached(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in tensors.items()}


def summed(figures: dict[str, Tensor]) -> dict[str, list[float]]:
    """Figures of a micro-batch as sums that can be added up: losses [TIME_BUCKETS] and their counts, the rest as it is."""
    found: dict[str, list[float]] = {
        name: figures[name].flatten().tolist() for name in ("mask_iou", "tokens") if name in figures
    }
    for name in ("video", "audio"):
        if name in figures:
            sums, counts = [0.0] * TIME_BUCKETS, [0.0] * TIME_BUCKETS
            for loss, at in zip(figures[name].tolist(), figures[f"{name}_time"].tolist(), strict=True):
                bucket = min(max(int(at * TIME_BUCKETS), 0), TIME_BUCKETS - 1)
                sums[bucket] += loss
                counts[bucket] += 1
            found |= {f"{name}_by_time": sums, f"{name}_count": counts}
    return found


def sums_over_workers(own: dict[str, list[float]]) -> dict[str, list[float]]:
    """Figures of the same names and sizes on all workers, summed in one go; all of them call this and get the same."""
    together = iter(over_workers([value for values in own.values() for value in values]))
    return {name: list(islice(together, len(values))) for name, values in own.items()}


def over_workers(values: list[float]) -> list[float]:
    """Sums over all workers; all of them call this and get the same."""
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    together = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(together)
    brought: list[float] = together.tolist()
    return brought
