"""Shared by the training benchmarks: clocks, and the trainer on batches made before the clock starts."""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from uniavgen.train.config import DeepSpeedConfig, StageConfig, TrainConfig
from uniavgen.train.data.loader import LoadedBatch
from uniavgen.train.diagnostics.config import HealthConfig
from uniavgen.train.model.config import ModelConfig
from uniavgen.train.tasks import PAPER_MIX
from uniavgen.train.trainer import Job, StageTrainer

KEPT = 4
"""Batches that are made once and then reused in turn."""


@dataclass
class Clocks:
    """Wall and CPU seconds of a process, by name, one entry per turn."""

    wait: Callable[[], None] = lambda: None
    wall: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    cpu: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def forget(self) -> None:
        """Discard all entries, after the warm-up."""
        self.wall.clear()
        self.cpu.clear()

    def now(self) -> tuple[float, float]:
        self.wait()
        return time.perf_counter(), time.process_time()

    def note(self, name: str, since: tuple[float, float]) -> None:
        now = self.now()
        self.wall[name].append(now[0] - since[0])
        self.cpu[name].append(now[1] - since[1])

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            since = self.now()
            try:
                return function(*arguments, **named)
            finally:
                self.note(name, since)

        return call


class InMemory(StageTrainer):
    """The trainer on batches made before the clock starts."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        micros = [(step, indices) for step in range(KEPT) for indices in self.sample_indices_at(step)]
        self.kept = [self.loader.load(*micro) for micro in micros]

    def batches(self, steps: Sequence[int]) -> Iterator[LoadedBatch]:
        return itertools.cycle(self.kept)


def training_config(
    model: ModelConfig, workers: int, steps: int, zero: int = 0, **changes: Any
) -> TrainConfig:
    """A joint stage on the paper's task mix; saves at its end only, diagnostics every 25 steps."""
    stage = StageConfig(name="joint", batch=4, steps=steps, tasks=PAPER_MIX)
    settings: dict[str, Any] = {
        "deepspeed": DeepSpeedConfig(zero_stage=zero),
        "health": HealthConfig(watch_every=25),
        **changes,
    }
    return TrainConfig(
        model=model, stages=[stage], workers=workers, fixed_steps=0, checkpoint={"every": 10**6}, **settings
    )
