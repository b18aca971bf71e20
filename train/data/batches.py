"""From samples to batches: the window that training sees, picture and sound of exactly the same span, as latents.

In: a stream of samples, a DataConfig, codecs. Out: LatentBatch, and counts of everything that was not as wished.
Which window of which sample stands in a batch is a pure function of (seed, step, sample index), never of the rank.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch

from uniavgen.shards.errors import UserError
from uniavgen.shards.sample import FaceTrack, Sample, Word, decode_audio, decode_video, rasterise_oval
from uniavgen.shards.timing import LATENT_STRIDE, VIDEO_FPS, samples_for_frames
from uniavgen.train.batch import LatentBatch
from uniavgen.train.codec.config import TOKEN_STRIDE
from uniavgen.train.codec.registry import Codecs
from uniavgen.train.codec.text import encode_speech
from uniavgen.train.config import DataConfig
from uniavgen.train.tasks import validate_batch

log = logging.getLogger(__name__)

TRIES = 16
"""Samples tried for one place of a batch before giving up."""
REFERENCE_GAP = VIDEO_FPS // 2
"""Frames between the window and a reference image, where the clip is long enough: half a second, our choice."""
SHORTEST_REFERENCE = VIDEO_FPS // 4
"""A reference sound from outside the window that is shorter than this (frames) says too little about a voice; our choice."""


class Stream(Protocol):
    """What is needed of `shards.stream.SampleStream` or `EmiliaStream`; the windows know which samples it has."""

    def __len__(self) -> int: ...

    def sample_at(self, position: int) -> Any: ...


class Window(NamedTuple):
    """Where a window starts and where its references come from, in pixel frames of the clip."""

    start: int
    image: int
    sound_start: int
    sound_frames: int


@dataclass(frozen=True)
class Crop:
    """One sample's window, before the codecs.

    frames uint8 [F, H, W, 3], reference uint8 [1, H, W, 3] and face float32 [T, H/32, W/32] are None in audio-only work;
    waveform float32 [1500 F] and reference_waveform float32 [1500 Fr] are at 24 kHz. `start` is the window's first frame,
    `bucket` the number of its shape where there are several.
    """

    key: str
    start: int
    waveform: np.ndarray
    reference_waveform: np.ndarray
    speech: str
    caption: str
    frames: np.ndarray | None = None
    reference: np.ndarray | None = None
    face: np.ndarray | None = None
    reference_inside: bool = False
    bucket: int = 0


def random_for(seed: int, step: int, index: int) -> np.random.Generator:
    """The generator of everything random about sample `index` of the global batch at `step`."""
    return np.random.default_rng([seed, step, index])


def crop_sample(
    sample: Sample, config: DataConfig, random: np.random.Generator, *, picture: bool = True
) -> Crop:
    """Choose and decode a window. Raises UserError of kind `short-clip` or `damaged-sample`."""
    start = int(random.integers(_starts(sample, config)))
    return cut_windows(
        sample, [choose_window(sample.face.score, start, config, random)], config, picture=picture
    )[0]


def fixed_windows(sample: Sample, config: DataConfig) -> list[Window]:
    """The windows of a clip that are worth caching: `config.cached.windows` or fewer, always the same for the same clip.

    The clip is divided into as many even parts; a window starts in each, all at the same phase, which is drawn by the
    clip's id: over the corpus every start is as likely as under random crops. Raises UserError of kind `short-clip`.
    """
    starts, windows = _starts(sample, config), config.cached.windows
    random = np.random.default_rng(list(sample.key.encode()))
    phase = random.random()
    chosen = sorted({int((number + phase) / windows * starts) for number in range(windows)})
    return [choose_window(sample.face.score, start, config, random) for start in chosen]


def _starts(sample: Sample, config: DataConfig) -> int:
    """How many frames of a clip a window may start at."""
    total = len(sample.face.score)
    if total < config.frames:
        raise UserError(
            f"clip {sample.key} has {total} frames, the window {config.frames}", kind="short-clip"
        )
    return total - config.frames + 1


def choose_window(score: np.ndarray, start: int, config: DataConfig, random: np.random.Generator) -> Window:
    """A window at `start` with its references; `score` [F] is the face track's."""
    image = choose_reference_frame(score, start, config.frames, random)
    return Window(
        start,
        image,
        *choose_reference_sound(len(score), start, config.frames, config.reference_frames, random),
    )


def cut_windows(
    sample: Sample, windows: Sequence[Window], config: DataConfig, *, picture: bool = True
) -> list[Crop]:
    """Decode windows of a sample, its sound and its picture once. Raises UserError of kind `damaged-sample`."""
    try:
        waveform = decode_audio(sample.audio)
        crops = [_cut(sample, waveform, window, config) for window in windows]
        return _with_pictures(crops, sample, windows, config) if picture else crops
    except (OSError, RuntimeError, ValueError) as error:  # what PyAV and soundfile raise for damaged media
        raise UserError(f"sample {sample.key} cannot be decoded: {error}", kind="damaged-sample") from error


def _cut(sample: Sample, waveform: np.ndarray, window: Window, config: DataConfig) -> Crop:
    inside = range(window.start, window.start + config.frames)
    reference = _span(waveform, window.sound_start, window.sound_frames, sample.key)
    return Crop(
        key=sample.key,
        start=window.start,
        waveform=_span(waveform, window.start, config.frames, sample.key),
        reference_waveform=_repeat(reference, config.reference_frames),
        speech=words_inside(sample.meta.words, window.start, config.frames),
        caption=sample.meta.caption,
        reference_inside=window.image in inside or window.sound_start in inside,
    )


def choose_reference_frame(score: np.ndarray, start: int, frames: int, random: np.random.Generator) -> int:
    """A frame with a face: half a second or more away from the window, else outside it, else anywhere."""
    index = np.arange(len(score))
    outside = (index < start) | (index >= start + frames)
    away = (index < start - REFERENCE_GAP) | (index >= start + frames + REFERENCE_GAP)
    for allowed in (away & (score > 0), outside & (score > 0), score > 0, score >= 0):
        if allowed.any():
            return int(random.choice(index[allowed]))
    raise UserError("a clip without frames", kind="damaged-sample")


def choose_reference_sound(
    total: int, start: int, frames: int, wanted: int, random: np.random.Generator
) -> tuple[int, int]:
    """(first frame, frames) of the reference sound: the longer part outside the window, else a part of the window."""
    parts = [(0, start), (start + frames, total - start - frames)]
    first, length = max(parts, key=lambda part: part[1])
    if length < min(SHORTEST_REFERENCE, wanted):
        first, length = start, frames
    taken = min(length, wanted)
    return first + int(random.integers(length - taken + 1)), taken


def words_inside(words: Sequence[Word], start: int, frames: int) -> str:
    """The words whose middle lies within the window of pixel frames, joined by spaces."""
    first, last = start / VIDEO_FPS, (start + frames) / VIDEO_FPS
    return " ".join(word.text.strip() for word in words if first <= (word.start_s + word.end_s) / 2 < last)


def _span(waveform: np.ndarray, start: int, frames: int, key: str) -> np.ndarray:
    """Samples of a span of pixel frames; sound may end up to a frame early, as codecs round."""
    first, length = samples_for_frames(start), samples_for_frames(frames)
    part = waveform[first : first + length]
    if length - len(part) > samples_for_frames(1):
        raise UserError(
            f"the sound of {key} ends {(length - len(part)) / 24:.0f} ms before its picture",
            kind="damaged-sample",
        )
    return np.pad(part, (0, length - len(part)))


def _repeat(waveform: np.ndarray, frames: int) -> np.ndarray:
    """A short reference sound said again until it fills its place."""
    return np.resize(waveform, samples_for_frames(frames))


def _with_pictures(
    crops: list[Crop], sample: Sample, windows: Sequence[Window], config: DataConfig
) -> list[Crop]:
    spans = [range(window.start, window.start + config.frames) for window in windows]
    indices = sorted(
        {index for window, span in zip(windows, spans, strict=True) for index in (window.image, *span)}
    )
    pixels = decode_video(sample.video, indices)
    fitted = np.stack([fit_picture(frame, config.height, config.width) for frame in pixels])
    place = {index: row for row, index in enumerate(indices)}
    sizes = (pixels.shape[1], pixels.shape[2]), (config.height, config.width)
    return [
        replace(
            crop,
            frames=fitted[[place[index] for index in span]],
            reference=fitted[[place[window.image]]],
            face=face_mask(sample.face, span, *sizes),
        )
        for crop, window, span in zip(crops, windows, spans, strict=True)
    ]


def _scale_and_offset(source: tuple[int, int], target: tuple[int, int]) -> tuple[float, tuple[float, float]]:
    """Scale that covers the target, and what the centred crop leaves off at the (top, left), in scaled px."""
    scale = max(target[0] / source[0], target[1] / source[1])
    return scale, ((source[0] * scale - target[0]) / 2, (source[1] * scale - target[1]) / 2)


def fit_picture(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize uint8 [h, w, 3] to cover the target and crop its centre, in one resampling where sides agree."""
    import cv2

    scale, (top, left) = _scale_and_offset(frame.shape[:2], (height, width))
    # crop in the source first, so that the kept part maps onto the target exactly
    y0, x0 = round(top / scale), round(left / scale)
    part = frame[y0 : y0 + round(height / scale), x0 : x0 + round(width / scale)]
    return cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def face_mask(face: FaceTrack, window: range, source: tuple[int, int], target: tuple[int, int]) -> np.ndarray:
    """Share of each video token inside the face oval: float32 [T, H/32, W/32], mean over the frames of each latent."""
    scale, (top, left) = _scale_and_offset(source, target)
    size = np.array([source[1], source[0]]) * scale
    frames = slice(window.start, window.stop)
    oval = (face.oval[frames] * size - [left, top]) / [target[1], target[0]]
    per_frame = rasterise_oval(oval, face.score[frames], target[0] // TOKEN_STRIDE, target[1] // TOKEN_STRIDE)
    later = per_frame[1:].reshape(-1, LATENT_STRIDE, *per_frame.shape[1:]).mean(axis=1)
    return np.concatenate([per_frame[:1], later])


@dataclass
class Loaded:
    """A batch and what is to be counted about it: clips passed over (`short`, `damaged`), references from inside the
    window, speech texts cut."""

    batch: LatentBatch
    counts: Counter[str]


class Windows(Protocol):
    """Where a loader gets windows from: items with `key`, `speech` and `reference_inside`, and batches of them."""

    def take(self, position: int, random: np.random.Generator) -> Any:
        """A window of the sample at a position. Raises UserError of kind `short-clip` or `damaged-sample` for one without."""
        ...

    def batch_of(self, items: list[Any]) -> LatentBatch:
        """The windows as a batch of latents."""
        ...


class EncodedWindows:
    """Random windows, decoded and encoded on line."""

    def __init__(self, stream: Stream, config: DataConfig, codecs: Codecs) -> None:
        self.stream, self.config, self.picture = stream, config, codecs.video is not None
        self.encoder = CropEncoder(config, codecs)

    def take(self, position: int, random: np.random.Generator) -> Crop:
        """See Windows."""
        return crop_sample(self.stream.sample_at(position), self.config, random, picture=self.picture)

    def batch_of(self, items: list[Crop]) -> LatentBatch:
        """See Windows."""
        return self.encoder.encode(items)


class CropEncoder:
    """Crops to a batch of latents: what training on line and the cache of latents share."""

    def __init__(self, config: DataConfig, codecs: Codecs) -> None:
        self.config, self.codecs = config, codecs
        self._captions: OrderedDict[str, tuple[torch.Tensor, torch.Tensor]] = OrderedDict()

    def encode(self, crops: list[Crop]) -> LatentBatch:
        """The batch, its latents on the codecs' device and its texts in host memory; without video members where the codecs
        have none."""
        config, mel = self.config, self.codecs.mel
        sound = torch.from_numpy(np.stack([crop.waveform for crop in crops]))
        reference_sound = torch.from_numpy(np.stack([crop.reference_waveform for crop in crops]))
        speech_ids, speech_mask = encode_speech([crop.speech for crop in crops], config.speech_bytes)
        batch = LatentBatch(
            keys=[crop.key for crop in crops],
            mel=mel.encode(sound, config.mels),
            reference_mel=mel.encode(reference_sound, config.reference_mels),
            speech_ids=speech_ids,
            speech_mask=speech_mask,
        )
        if self.codecs.video is not None:
            batch.video = self.codecs.video.encode(_stack([crop.frames for crop in crops]))
            batch.reference = self.codecs.video.encode(_stack([crop.reference for crop in crops]))
            batch.face = _stack([crop.face for crop in crops])
            batch.caption, batch.caption_mask = self._caption([crop.caption for crop in crops])
        return batch

    def _caption(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of captions; each text is encoded once while it stays among the last few hundred, which in the memory of a
        card would take gigabytes."""
        assert self.codecs.caption is not None
        for caption in captions:
            if caption not in self._captions:
                features, mask = self.codecs.caption.encode([caption], self.config.caption_tokens)
                self._captions[caption] = features[0].cpu(), mask[0].cpu()
            self._captions.move_to_end(caption)
        features, mask = (
            torch.stack(parts) for parts in zip(*(self._captions[c] for c in captions), strict=True)
        )
        while len(self._captions) > 256:
            self._captions.popitem(last=False)
        return features, mask


class BatchLoader:
    """Makes the part of a global batch that a worker needs; `windows` gives its samples, by default encoded on line."""

    def __init__(
        self,
        stream: Stream,
        config: DataConfig,
        codecs: Codecs,
        batch: int,
        windows: Windows | None = None,
        other: Callable[[int, int], int] | None = None,
    ) -> None:
        """Step s takes positions from s * `batch` on; `other(position, attempt)` says where to look for a sample instead."""
        self.stream, self.config, self.batch = stream, config, batch
        self.other = other or (lambda position, attempt: other_position(position, attempt, len(self.stream)))
        self.windows: Windows = windows or EncodedWindows(stream, config, codecs)

    def load(self, step: int, indices: Sequence[int]) -> Loaded:
        """Samples `indices` (0 .. batch-1) of the global batch at 0-based `step`."""
        counts: Counter[str] = Counter()
        items = [self._item(step, index, counts) for index in indices]
        counts["speech_cut"] += sum(len(item.speech.encode()) > self.config.speech_bytes for item in items)
        batch = self.windows.batch_of(items)
        validate_batch(batch)
        return Loaded(batch, counts)

    def _item(self, step: int, index: int, counts: Counter[str]) -> Any:
        """The window at its position; a clip that is too short or damaged is replaced, by rule, and counted."""
        random = random_for(self.config.seed, step, index)
        reasons = []
        for attempt in range(TRIES):
            position = self.other(step * self.batch + index, attempt)
            try:
                item = self.windows.take(position, random)
                counts["reference_inside"] += item.reference_inside
                return item
            except UserError as error:
                if error.kind not in ("short-clip", "damaged-sample"):
                    raise
                counts["short" if error.kind == "short-clip" else "damaged"] += 1
                reasons.append(str(error))
                log.log(
                    logging.INFO if error.kind == "short-clip" else logging.WARNING, "passed over: %s", error
                )
        raise UserError(
            f"{TRIES} samples in a row cannot be used; the last: {reasons[-1]}",
            hint="lower train.data.frames to what the clips hold, or check the shards",
            kind="no-usable-sample",
        )


def other_position(position: int, attempt: int, samples: int) -> int:
    """The position to try instead: in the same epoch, far from the first (golden-section steps spread them out)."""
    epoch, place = divmod(position, samples)
    return epoch * samples + (place + round(attempt * samples * 0.618034)) % samples


def _stack(arrays: list[np.ndarray | None]) -> torch.Tensor:
    return torch.from_numpy(np.stack([array for array in arrays if array is not None]))


Item = TypeVar("Item")
Key = TypeVar("Key")


def prefetched(make: Callable[[Key], Item], keys: Iterable[Key], depth: int) -> Iterator[Item]:
    """`map(make, keys)` in order, with up to `depth` items made ahead in a thread (0: made when asked for)."""
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
