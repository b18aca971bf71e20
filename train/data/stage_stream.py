"""The samples of a training stage: stream, window shapes, and each rank's share of a step.

A step has windows of one shape, the same on all ranks. The `batch` of a stage is that of its most expensive
window shape. With `balance: flops`, a shape that costs at most half of that (by `train.model.flops`) takes a
whole multiple of the batch, in as many micro-steps with that many times the samples: batches split over the
ranks as before, and every step costs between half and all of the most expensive one. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from uniavgen.shards.buckets import WindowBuckets, WindowShape
from uniavgen.shards.emilia.stream import EmiliaStream
from uniavgen.shards.read.sample_order import SampleOrder
from uniavgen.shards.read.sampler import Place
from uniavgen.shards.read.stream import SampleStream
from uniavgen.shards.timing import VIDEO_FPS
from uniavgen.train.config import StageConfig, TrainConfig
from uniavgen.train.data.config import DataConfig
from uniavgen.train.model.family import family_of


@dataclass(frozen=True)
class Begun:
    """How an interrupted stage began: its shards (name to SHA-256), its order of samples, its place in it.

    `fitting_only`: samples shorter than every window are not numbered. Stages begun by 0.4 or older number
    them, and replace them when their turn comes.
    """

    shards: Mapping[str, str] | None = None
    order: SampleOrder | None = None
    place: Place | None = None
    fitting_only: bool = True


def begun_stage(
    state: Mapping[str, Any], step: int, config: TrainConfig, stage: StageConfig, order: SampleOrder | None
) -> tuple[Begun, list[str]]:
    """How to continue a stage from the state of its checkpoint at `step`, and lines for people.

    `order`: the order with which it began, if known. A changed batch keeps its place: it continues with the
    samples that were not dealt yet.
    """
    saved, now = state["settings"], config.model_dump(mode="json", include={"data"})["data"]
    batch = int(saved["stage"]["batch"])
    place = Place(**state["place"]) if "place" in state else Place()
    place = replace(place, consumed={int(name): count for name, count in place.consumed.items()})
    position = state.get("position", place.position_at(step, batch))
    layout = ("buckets", "balance")
    same_windows = all(saved["data"].get(name, now[name]) == now[name] for name in layout)
    lines: list[str] = []
    if same_windows and batch == stage.batch:
        pass
    elif not now["buckets"] and not saved["data"].get("buckets"):
        place = Place(step, position)
        lines = [f"the batch is {stage.batch} instead of {batch}: samples continue at number {position:,}"]
    elif same_windows and "consumed" in state:
        place = Place(step, 0, {int(name): count for name, count in state["consumed"].items()})
        dealt = sum(place.consumed.values())
        lines = [f"the batch is {stage.batch} instead of {batch}: samples continue after {dealt:,}"]
    else:
        place = Place(step, 0)
        lines = ["batch or windows changed: the order of samples begins anew"]
    return Begun(state.get("shards"), order, place, state.get("fitting_only", False)), lines


def place_state(stream: SampleStream | EmiliaStream, stage: StageConfig, step: int) -> dict[str, Any]:
    """What `begun_stage` needs, as JSON, for a checkpoint at `step`."""
    batch = stream.sampler.batch if stream.buckets else stage.batch
    position = stream.place.position_at(step, batch)
    state: dict[str, Any] = {"place": asdict(stream.place), "position": position}
    if stream.buckets:
        state["consumed"] = stream.sampler.consumed_at(position)
    return state


def open_stream(
    config: TrainConfig,
    stage: StageConfig,
    shards_dir: str,
    run_dir: str,
    begun: Begun | None = None,
) -> SampleStream | EmiliaStream:
    """The training samples of a stage: clips of the corpus, or utterances of the stage's own audio shards.

    `begun`: how an interrupted stage began. Raises UserError as `SampleStream` and `EmiliaStream` do.
    """
    data, begun = config.data, begun or Begun()
    if stage.emilia.shards:
        window_s, cache = data.frames / VIDEO_FPS, Path(run_dir) / "indexes"
        return EmiliaStream(
            stage.emilia,
            window_s,
            data.seed,
            shards=begun.shards,
            place=begun.place,
            error_budget=data.damage,
            cache=cache,
        )
    return SampleStream(
        shards_dir,
        "train",
        data.seed,
        buckets=stage_buckets(config, stage),
        shards=begun.shards,
        frames=shortest_window(data) if begun.fitting_only else 0,
        order=begun.order,
        place=begun.place,
        error_budget=data.damage,
    )


def shortest_window(data: DataConfig) -> int:
    """Pixel frames of the shortest window: a sample with fewer is not dealt."""
    return min([shape.frames for shape in data.buckets] or [data.frames])


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
    times = 1
    if stream.buckets:
        position = stream.place.position_at(step, stream.sampler.batch)
        times = stream.sampler.batch_size_at(position) // stage.batch
    return split_batch(stage.batch * times, world, rank, micro * times)


def split_batch(batch: int, world: int, rank: int, micro: int) -> list[tuple[int, ...]]:
    """Sample indices of one rank, one tuple per forward pass; over all ranks they are 0..batch-1."""
    share = batch // world
    indices = range(rank * share, (rank + 1) * share)
    return [tuple(indices[first : first + micro]) for first in range(0, share, micro)]
