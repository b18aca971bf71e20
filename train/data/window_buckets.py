"""Duration and aspect buckets in training: which windows there are, how many samples a step of each takes, and their crops.

In: a TrainConfig and a stage, a stream that is dealt by these buckets, codecs. Out: the buckets for the stream, and windows
for the loader. Every step is of one bucket, the same on all workers, so every micro-step has one shape; which one is the
stream's order. A stage's `batch` is that of its dearest window: with `balance: flops` a window that costs a half or less of
it (by `train.model.flops`) takes a whole multiple of that batch, in as many micro-steps of as many times the samples. So
batches split over any number of workers as they did, and cost between a half and all of the dearest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from uniavgen.shards.buckets import WindowBuckets, WindowShape
from uniavgen.shards.timing import VIDEO_FPS
from uniavgen.train.config import DataConfig, StageConfig, TrainConfig
from uniavgen.train.model.flops import Shapes, forward_flops

if TYPE_CHECKING:
    import numpy as np

    from uniavgen.shards.emilia.stream import EmiliaStream
    from uniavgen.shards.read.stream import SampleStream
    from uniavgen.train.batch import LatentBatch
    from uniavgen.train.codec.registry import Codecs
    from uniavgen.train.data.batches import Crop, Windows


def stage_buckets(config: TrainConfig, stage: StageConfig) -> WindowBuckets | None:
    """The buckets of a stage with their batch sizes, None where there is one window only."""
    if not config.data.buckets:
        return None
    shapes = tuple(config.data.buckets)
    times = [1] * len(shapes)
    if config.data.balance == "flops":
        costs = [window_flops(config, stage, shape) for shape in shapes]
        times = [int(max(costs) / cost) for cost in costs]
    return WindowBuckets(shapes=shapes, batches=tuple(stage.batch * many for many in times))


def window_flops(config: TrainConfig, stage: StageConfig, shape: WindowShape) -> float:
    """FLOPs of one sample's forward pass in a window, references included, where the stage has both branches or sound alone."""
    data = data_for(config.data, shape)
    latents, height, width = data.latent_shape
    sizes = Shapes(
        latents=latents + 1 if stage.picture else 0,
        height=height,
        width=width,
        mels=data.mels + data.reference_mels,
        reference_latents=1 if stage.picture else 0,
        reference_mels=data.reference_mels,
        caption_tokens=data.caption_tokens,
        speech_tokens=data.speech_bytes,
    )
    return forward_flops(config.model, sizes)["total"]


def data_for(data: DataConfig, shape: WindowShape) -> DataConfig:
    """The data configuration of one bucket's window."""
    return data.model_copy(update={"frames": shape.frames, "height": shape.height, "width": shape.width})


class BucketedWindows:
    """`train.data.Windows` whose shape is that of the step's bucket; encoded on line."""

    def __init__(
        self, stream: SampleStream, config: DataConfig, codecs: Codecs, buckets: WindowBuckets
    ) -> None:
        from uniavgen.train.data.batches import EncodedWindows

        self.stream = stream
        self.windows = [EncodedWindows(stream, data_for(config, shape), codecs) for shape in buckets.shapes]

    def take(self, position: int, random: np.random.Generator) -> Crop:
        """See `train.data.Windows`."""
        bucket = self.stream.sampler.bucket_at(position)
        return replace(self.windows[bucket].take(position, random), bucket=bucket)

    def batch_of(self, items: list[Any]) -> LatentBatch:
        """See `train.data.Windows`; the items are of one step, so of one bucket."""
        return self.windows[items[0].bucket].batch_of(items)


class Feed(NamedTuple):
    """What a stage's `train.data.BatchLoader` is made with: positions per step, windows, where to look for a sample instead.

    `latents` is the digest of the cached ones that it reads, "" for none, and `line` says so.
    """

    batch: int
    windows: Windows
    other: Callable[[int, int], int] | None
    latents: str
    line: str


def open_stream(
    config: TrainConfig,
    stage: StageConfig,
    shards_dir: str,
    run_dir: str,
    shards: Mapping[str, str] | None = None,
) -> SampleStream | EmiliaStream:
    """The training samples of a stage: clips of the corpus, or utterances of the audio shards that it names.

    `shards`: those that the stage began with. Raises UserError as `SampleStream` and `EmiliaStream` do.
    """
    from uniavgen.shards.emilia.stream import EmiliaStream
    from uniavgen.shards.read.stream import SampleStream

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


def make_feed(
    stream: SampleStream | EmiliaStream,
    config: DataConfig,
    stage: StageConfig,
    codecs: Codecs,
    begun_with: str | None = None,
) -> Feed:
    """Utterances, windows of the stream's buckets, cached ones, or any of the one shape.

    For `begun_with` and errors see `find_latents`.
    """
    from uniavgen.shards.emilia.stream import EmiliaStream
    from uniavgen.train.data.batches import EncodedWindows
    from uniavgen.train.data.cached_latents import find_latents
    from uniavgen.train.data.emilia import EmiliaWindows

    if isinstance(stream, EmiliaStream):
        line = f"{stream.line}; encoded on line in windows of {config.frames} frames"
        return Feed(stage.batch, EmiliaWindows(stream, config, codecs), None, "", line)
    if isinstance(stream.buckets, WindowBuckets):
        line = f"latents are encoded on line: {len(stream.buckets.shapes)} windows, caches hold one"
        windows = BucketedWindows(stream, config, codecs, stream.buckets)
        return Feed(stream.sampler.batch, windows, stream.sampler.replacement_position, "", line)
    cached, line = find_latents(stream, config, codecs, begun_with)
    if cached:
        return Feed(stage.batch, cached, None, cached.digest, line)
    return Feed(stage.batch, EncodedWindows(stream, config, codecs), None, "", line)


def places_at(
    step: int, stream: SampleStream | EmiliaStream, stage: StageConfig, world: int, rank: int, micro: int
) -> list[tuple[int, ...]]:
    """Places in the batch of a step that a worker computes, one tuple per forward; all workers' together are the whole batch.

    As many tuples at every step; a batch that is some times the stage's has that many times the samples in each.
    """
    times = stream.sampler.batch_size_at(step * stream.sampler.batch) // stage.batch if stream.buckets else 1
    return split_batch(stage.batch * times, world, rank, micro * times)


def split_batch(batch: int, world: int, rank: int, micro: int) -> list[tuple[int, ...]]:
    """Places in the global batch that a worker computes, one tuple per forward; all workers' together are 0..batch-1."""
    share = batch // world
    mine = range(rank * share, (rank + 1) * share)
    return [tuple(mine[at : at + micro]) for at in range(0, share, micro)]
