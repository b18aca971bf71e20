"""The samples of a training stage: stream, window shapes, and each rank's share of a step.

A step has windows of one shape, the same on all ranks. The `batch` of a stage is that of its most expensive
window shape. With `balance: flops`, a shape that costs at most half of that (by `train.model.flops`) takes a
whole multiple of the batch, in as many micro-steps with that many times the samples: batches split over the
ranks as before, and every step costs between half and all of the most expensive one. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from uniavgen.shards.buckets import WindowBuckets, WindowShape
from uniavgen.shards.emilia.stream import EmiliaStream
from uniavgen.shards.read.stream import SampleStream
from uniavgen.shards.timing import VIDEO_FPS
from uniavgen.train.config import StageConfig, TrainConfig
from uniavgen.train.data.config import DataConfig
from uniavgen.train.model.family import family_of


def open_stream(
    config: TrainConfig,
    stage: StageConfig,
    shards_dir: str,
    run_dir: str,
    shards: Mapping[str, str] | None = None,
) -> SampleStream | EmiliaStream:
    """The training samples of a stage: clips of the corpus, or utterances of the stage's own audio shards.

    `shards` (name to SHA-256): the shards with which an interrupted stage began. Raises UserError as
    `SampleStream` and `EmiliaStream` do.
    """
    data = config.data
    if stage.emilia.shards:
        window_s, cache = data.frames / VIDEO_FPS, Path(run_dir) / "indexes"
        return EmiliaStream(
            stage.emilia, window_s, data.seed, shards=shards, error_budget=data.damage, cache=cache
        )
    buckets = stage_buckets(config, stage)
    return SampleStream(
        shards_dir, "train", data.seed, buckets=buckets, shards=shards, error_budget=data.damage
    )


def stage_buckets(config: TrainConfig, stage: StageConfig) -> WindowBuckets | None:
    """The buckets of a stage with their batch sizes; None if there is one window shape only."""
    if not config.data.buckets:
        return None
    shapes = tuple(config.data.buckets)
    multiples = [1] * len(shapes)
    if config.data.balance == "flops":
        costs = [window_flops(config, stage, shape) for shape in shapes]
        multiples = [int(max(costs) / cost) for cost in costs]
    return WindowBuckets(shapes=shapes, batches=tuple(stage.batch * multiple for multiple in multiples))


def window_flops(config: TrainConfig, stage: StageConfig, shape: WindowShape) -> float:
    """FLOPs of the forward pass of one sample in a window, with references and the branches of the stage."""
    family = family_of(config.model)
    return family.forward_flops(family.sample_shapes(data_for(config.data, shape), stage, with_voice=True))


def data_for(data: DataConfig, shape: WindowShape) -> DataConfig:
    """The data configuration with the window shape of one bucket."""
    return data.model_copy(update={"frames": shape.frames, "height": shape.height, "width": shape.width})


def micro_batches(
    step: int, stream: SampleStream | EmiliaStream, stage: StageConfig, world: int, rank: int, micro: int
) -> list[tuple[int, ...]]:
    """Sample indices in the global batch of `step` that a rank computes, one tuple per forward pass.

    The number of tuples is the same at every step. With buckets, a step may have a multiple of the stage's
    batch: then each tuple has that many times `micro` samples.
    """
    times = stream.sampler.batch_size_at(step * stream.sampler.batch) // stage.batch if stream.buckets else 1
    return split_batch(stage.batch * times, world, rank, micro * times)


def split_batch(batch: int, world: int, rank: int, micro: int) -> list[tuple[int, ...]]:
    """Sample indices of one rank, one tuple per forward pass; over all ranks they are 0..batch-1."""
    share = batch // world
    indices = range(rank * share, (rank + 1) * share)
    return [tuple(indices[first : first + micro]) for first in range(0, share, micro)]
