"""Batches of latents for a training stage: stream of samples -> windows -> codecs -> `LatentBatch`.

Step s of a stage takes the positions [s * batch, (s + 1) * batch) of the stream. The content of a global
batch is a pure function of (seed, step, sample index), never of the rank, so any number of ranks trains on
the same batches.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from uniavgen.shards.buckets import WindowBuckets
from uniavgen.shards.emilia.stream import EmiliaStream
from uniavgen.shards.errors import UserError
from uniavgen.shards.read.sampler import Place
from uniavgen.shards.read.stream import SampleStream
from uniavgen.train.batch import LatentBatch, validate_batch
from uniavgen.train.codec.registry import Codecs
from uniavgen.train.codec.relative import encode_still, subtract_still
from uniavgen.train.codec.text import encode_speech
from uniavgen.train.config import StageConfig
from uniavgen.train.data.cached_latents import find_latents
from uniavgen.train.data.config import DataConfig
from uniavgen.train.data.crops import Crop, crop_sample, crop_utterance, random_for
from uniavgen.train.data.stage_stream import data_for

log = logging.getLogger(__name__)

MAX_REPLACEMENTS = 16
"""Samples that are tried for one place of a batch before an error is raised. Heuristic."""
REPLACED = {
    "short-clip": "short",
    "no-voice": "no_voice",
    "damaged-sample": "damaged",
    "gone-sample": "gone",
}
"""Kinds of errors for which a sample is replaced, and the names under which they are counted."""
CAPTIONS_KEPT = 256
"""Captions whose features stay in host memory. Heuristic."""


class Stream(Protocol):
    """The part of `SampleStream` and `EmiliaStream` that the loader needs."""

    place: Place

    def __len__(self) -> int: ...

    def sample_at(self, position: int) -> Any: ...


class Windows(Protocol):
    """Source of windows: each has `key`, `speech_text`, `reference_inside` and `voice_inside`, several make a
    batch."""

    def take(self, position: int, random: np.random.Generator, *, needs_voice: bool = False) -> Any:
        """A window of the sample at `position`. `needs_voice`: with a reference voice from outside of it.

        Raises UserError of kind `short-clip`, `no-voice`, `damaged-sample` or `gone-sample`.
        """
        ...

    def make_batch(self, windows: list[Any]) -> LatentBatch:
        """The windows as a batch of latents."""
        ...


@dataclass
class LoadedBatch:
    """A batch, and counts: clips replaced (values of `REPLACED`), `reference_inside`, `speech_cut`."""

    batch: LatentBatch
    counts: Counter[str]


def make_loader(
    stream: SampleStream | EmiliaStream,
    config: DataConfig,
    stage: StageConfig,
    codecs: Codecs,
    begun_with: str | None = None,
) -> BatchLoader:
    """The loader of a stage: utterances, windows of several shapes, cached latents, or windows of one shape.

    `begun_with` and errors: see `find_latents`.
    """
    if isinstance(stream, EmiliaStream):
        source = f"{stream.line}; encoded during training in windows of {config.frames} frames"
        return BatchLoader(
            stream, config, UtteranceWindows(stream, config, codecs), stage.batch, source=source
        )
    if isinstance(stream.buckets, WindowBuckets):
        shapes = len(stream.buckets.shapes)
        return BatchLoader(
            stream,
            config,
            BucketedWindows(stream, config, codecs, stream.buckets),
            stream.sampler.batch,
            replacement=stream.sampler.replacement_position,
            source=f"latents are encoded during training: {shapes} window shapes, cached latents have one",
        )
    cached, source = find_latents(stream, config, codecs, begun_with)
    if cached:
        return BatchLoader(stream, config, cached, stage.batch, latents=cached.digest, source=source)
    return BatchLoader(stream, config, EncodedWindows(stream, config, codecs), stage.batch, source=source)


class BatchLoader:
    """Makes the part of a global batch that a rank needs.

    `batch`: positions of the stream per step. `replacement(position, attempt)`: position to try instead of
    one whose sample cannot be used. `latents`: digest of the cached latents that are read, "" if none.
    `source`: one line for people that says where the latents come from. `needs_voice(step)`: whether the step
    uses a reference voice; it must not overlap the window, so samples without another part are replaced.
    """

    def __init__(
        self,
        stream: Stream,
        config: DataConfig,
        windows: Windows,
        batch: int,
        *,
        replacement: Callable[[int, int], int] | None = None,
        latents: str = "",
        source: str = "",
    ) -> None:
        self.stream, self.config, self.windows, self.batch = stream, config, windows, batch
        self.latents, self.source = latents, source
        self.needs_voice: Callable[[int], bool] = lambda step: False
        self.replacement = replacement or (
            lambda position, attempt: replacement_position(position, attempt, len(stream))
        )

    def load(self, step: int, indices: Sequence[int]) -> LoadedBatch:
        """Samples `indices` (0 .. batch-1) of the global batch at 0-based `step`. Raises UserError."""
        counts: Counter[str] = Counter()
        windows = [self._take(step, index, counts) for index in indices]
        longest = self.config.speech_bytes
        counts["speech_cut"] += sum(len(window.speech_text.encode()) > longest for window in windows)
        batch = self.windows.make_batch(windows)
        validate_batch(batch)
        return LoadedBatch(batch, counts)

    def _take(self, step: int, index: int, counts: Counter[str]) -> Any:
        """The window of one sample.

        A short, damaged or gone clip is counted and replaced by another, always the same one.
        """
        random = random_for(self.config.seed, step, index)
        reasons: list[str] = []
        first = self.stream.place.position_at(step, self.batch) + index
        for attempt in count():
            position = self.replacement(first, attempt)
            try:
                window = self.windows.take(position, random, needs_voice=self.needs_voice(step))
                counts["reference_inside"] += window.reference_inside
                return window
            except UserError as error:
                reason = REPLACED.get(error.kind)
                if reason is None:
                    raise
                counts[reason] += 1
                if reason == "gone":  # said once for all of them
                    continue
                reasons.append(str(error))
                level = logging.WARNING if reason == "damaged" else logging.INFO
                log.log(level, "sample replaced: %s", error)
            if len(reasons) == MAX_REPLACEMENTS:
                raise UserError(
                    f"{MAX_REPLACEMENTS} samples in a row cannot be used; the last: {reasons[-1]}",
                    hint="lower train.data.frames to the length of the clips, or check the shards",
                    kind="no-usable-sample",
                )
        raise AssertionError("count() does not end")


def replacement_position(position: int, attempt: int, samples: int) -> int:
    """Position to try instead of `position`: in the same epoch, spread out by golden-section steps."""
    epoch, offset = divmod(position, samples)
    return epoch * samples + (offset + round(attempt * samples * 0.618034)) % samples


class EncodedWindows:
    """Random windows of clips, decoded and encoded during training."""

    def __init__(self, stream: Stream, config: DataConfig, codecs: Codecs) -> None:
        self.stream, self.config, self.with_video = stream, config, codecs.video is not None
        self.encoder = CropEncoder(config, codecs)

    def take(self, position: int, random: np.random.Generator, *, needs_voice: bool = False) -> Crop:
        """See Windows."""
        sample = self.stream.sample_at(position)
        return crop_sample(sample, self.config, random, with_video=self.with_video, needs_voice=needs_voice)

    def make_batch(self, windows: list[Crop]) -> LatentBatch:
        """See Windows."""
        return self.encoder.encode(windows)


class BucketedWindows:
    """Random windows whose shape is that of the step's bucket, encoded during training."""

    def __init__(
        self, stream: SampleStream, config: DataConfig, codecs: Codecs, buckets: WindowBuckets
    ) -> None:
        self.stream = stream
        self.windows = [EncodedWindows(stream, data_for(config, shape), codecs) for shape in buckets.shapes]

    def take(self, position: int, random: np.random.Generator, *, needs_voice: bool = False) -> Crop:
        """See Windows."""
        bucket = self.stream.sampler.bucket_at(position)
        crop = self.windows[bucket].take(position, random, needs_voice=needs_voice)
        return replace(crop, bucket=bucket)

    def make_batch(self, windows: list[Crop]) -> LatentBatch:
        """See Windows. All windows are of one step, so of one bucket."""
        return self.windows[windows[0].bucket].make_batch(windows)


class UtteranceWindows:
    """Windows of Emilia utterances, encoded during training."""

    def __init__(self, stream: EmiliaStream, config: DataConfig, codecs: Codecs) -> None:
        self.stream, self.config, self.encoder = stream, config, CropEncoder(config, codecs)

    def take(self, position: int, random: np.random.Generator, *, needs_voice: bool = False) -> Crop:
        """See Windows.

        Raises UserError of kind `damaged-sample` for the utterance or the reference of its speaker.
        """
        utterance = self.stream.sample_at(position)
        other = self.stream.other_by_speaker(position, random)
        if needs_voice and other is None:
            raise UserError(f"the speaker of {utterance.key} has no other utterance", kind="no-voice")
        return crop_utterance(utterance, other, self.config, random, self.stream.config)

    def make_batch(self, windows: list[Crop]) -> LatentBatch:
        """See Windows."""
        return self.encoder.encode(windows)


class CropEncoder:
    """Encodes crops as a batch of latents: for training, and for the cache of latents."""

    def __init__(self, config: DataConfig, codecs: Codecs) -> None:
        self.config, self.codecs = config, codecs
        self._captions: OrderedDict[str, tuple[torch.Tensor, torch.Tensor]] = OrderedDict()

    def encode(self, crops: list[Crop]) -> LatentBatch:
        """The batch: latents on the codecs' device, texts in host memory."""
        config, mel = self.config, self.codecs.mel
        waveforms = torch.from_numpy(np.stack([crop.waveform for crop in crops]))
        references = torch.from_numpy(np.stack([crop.reference_waveform for crop in crops]))
        speech_ids, speech_mask = encode_speech([crop.speech_text for crop in crops], config.speech_bytes)
        batch = LatentBatch(
            keys=[crop.key for crop in crops],
            mel=mel.encode(waveforms, config.mels),
            reference_mel=mel.encode(references, config.reference_mels),
            speech_ids=speech_ids,
            speech_mask=speech_mask,
        )
        filled = [crop.audio_samples for crop in crops]
        if any(samples is not None for samples in filled):
            hop = config.codecs.mel.hop
            frames = [config.mels if samples is None else -(-samples // hop) for samples in filled]
            batch.mel_lengths = torch.tensor(frames).clamp(1, config.mels)
        if self.codecs.video is not None:
            batch.video = self.codecs.video.encode(_stack([crop.frames for crop in crops]))
            reference = _stack([crop.reference_frame for crop in crops])
            if config.relative:
                still = encode_still(self.codecs.video, reference)
                batch.video, batch.reference = subtract_still(batch.video, still), still[:, :, :1]
            else:
                batch.reference = self.codecs.video.encode(reference)
            batch.face = _stack([crop.face for crop in crops])
            batch.mouth = _stack([crop.mouth for crop in crops]) if config.mouth_mask else None
            batch.caption, batch.caption_mask = self._encode_captions([crop.caption for crop in crops])
        return batch

    def _encode_captions(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Features and masks of captions.

        The last captions are kept, in host memory: on a GPU they would take gigabytes.
        """
        assert self.codecs.caption is not None
        for caption in captions:
            if caption not in self._captions:
                features, mask = self.codecs.caption.encode([caption], self.config.caption_tokens)
                self._captions[caption] = features[0].cpu(), mask[0].cpu()
            self._captions.move_to_end(caption)
        features, mask = (
            torch.stack(parts) for parts in zip(*(self._captions[c] for c in captions), strict=True)
        )
        while len(self._captions) > CAPTIONS_KEPT:
            self._captions.popitem(last=False)
        return features, mask


def _stack(arrays: list[np.ndarray | None]) -> torch.Tensor:
    return torch.from_numpy(np.stack([array for array in arrays if array is not None]))


Item = TypeVar("Item")
Key = TypeVar("Key")


def prefetched(make: Callable[[Key], Item], keys: Iterable[Key], depth: int) -> Iterator[Item]:
    """`map(make, keys)` in order; up to `depth` items are made ahead in a thread (0: without a thread)."""
    if not depth:
        yield from map(make, keys)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="loader") as pool:
        waiting: list[Future[Item]] = []
        try:
            for key in keys:
                waiting.append(pool.submit(make, key))
                if len(waiting) > depth:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()
