"""Validation losses on fixed clips of val at fixed diffusion times, for every task of a stage.

Clips, windows and noise never change, so the losses are comparable over a whole run.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from uniavgen.shards.errors import UserError
from uniavgen.shards.read.stream import SampleStream
from uniavgen.train.codec.registry import Codecs
from uniavgen.train.config import ObjectiveConfig, StageConfig, TrainConfig
from uniavgen.train.data.loader import BatchLoader, EncodedWindows
from uniavgen.train.data.stage_stream import Begun
from uniavgen.train.engine.collectives import all_reduce_sum
from uniavgen.train.flow_matching import Draw
from uniavgen.train.model.family import family_of
from uniavgen.train.tasks import Task
from uniavgen.train.timestep_config import TimestepConfig

STEP = 2**40
"""Step for which the noise is drawn; larger than any training step."""


class Validation:
    """The clips of one rank. All ranks make one and call `losses` together."""

    def __init__(
        self,
        config: TrainConfig,
        stage: StageConfig,
        shards_dir: str,
        codecs: Codecs,
        begun: Begun | None = None,
    ) -> None:
        """Encode the clips once. `begun`: how an interrupted stage began, with the shards of val.

        Raises UserError if the clips do not split evenly over the ranks, or if there is no val.
        """
        rank, world = dist.get_rank(), dist.get_world_size()
        share, remainder = divmod(config.validation.clips, world)
        if remainder:
            raise UserError(
                f"{config.validation.clips} validation clips do not split among {world} workers",
                where="train.validation.clips",
                hint=f"use {world * max(1, share)}",
                kind="bad-batch",
            )
        self.config, self.stage = config, stage
        self.indices = tuple(range(rank * share, (rank + 1) * share))
        begun = begun or Begun()
        stream = self.stream = SampleStream(
            shards_dir,
            "val",
            config.data.seed,
            shards=begun.shards,
            frames=config.data.frames if begun.fitting_only else 0,
            order=begun.order,
            error_budget=config.data.damage,
        )
        windows = EncodedWindows(stream, config.data, codecs)
        loader = BatchLoader(stream, config.data, windows, config.validation.clips)
        # one batch serves every task
        with_voice = any(
            count and task.spec.reference_voice != "never" for task, count in stage.tasks.items()
        )
        loader.needs_voice = lambda step: with_voice
        self.batch = loader.load(0, self.indices).batch

    def losses(self, engine: Any, prefix: str = "validation") -> dict[str, float]:
        """`<prefix>/<task>/<modality>` (mean over times) and `.../t<time>`, over the clips of all ranks."""
        tasks = [task for task in Task if self.stage.tasks.get(task)]
        metrics: dict[str, float] = {}
        for task in tasks:
            scored = self.stage.scored(task)
            sums = [self._at(engine, task, time, scored) for time in self.config.validation.times]
            means = all_reduce_sum([value for row in sums for value in row])
            table = torch.tensor(means).view(len(sums), len(scored)) / dist.get_world_size()
            for column, name in enumerate(scored):
                metrics[f"{prefix}/{task}/{name}"] = float(table[:, column].mean())
                for row, time in enumerate(self.config.validation.times):
                    metrics[f"{prefix}/{task}/{name}/t{time:g}"] = float(table[row, column])
        return metrics

    @torch.no_grad()
    def _at(self, engine: Any, task: Task, time: float, scored: list[str]) -> list[float]:
        objective = family_of(self.config.model).objective(
            fixed_objective(self.config.objective, self.stage.tasks, time), self.stage, checkpointing=False
        )
        draw, batch = Draw(self.config.seed, STEP, self.indices), replace(self.batch).to(engine.device)
        losses = objective.losses(engine, batch, task, draw, weights={})
        return [float(losses[name]) for name in scored]


def fixed_objective(objective: ObjectiveConfig, mix: dict[Task, int], time: float) -> ObjectiveConfig:
    """The objective of the stage with every sample at one diffusion time, and without dropout of texts."""
    exact = TimestepConfig(distribution="logit-normal", mean=math.log(time / (1 - time)), std=1e-12)
    dropouts = ("caption_dropout", "speech_dropout", "interaction_dropout")
    branches = {"timestep": exact, "video_timestep": None, "audio_timestep": None}
    return objective.model_copy(update={**branches, "mix": mix, **dict.fromkeys(dropouts, 0.0)})
