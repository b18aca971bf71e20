"""Choose the window of a sample for training, and decode its frames, audio and text of the same span.

A crop of a clip has all parts, a crop of an Emilia utterance has audio and text only. All random choices are
a pure function of (seed, step, sample index), never of the rank. The paper does not say how windows,
references and utterances are cut: the rules here are heuristics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from uniavgen.shards.config import EmiliaConfig
from uniavgen.shards.emilia.sample import Utterance
from uniavgen.shards.errors import UserError
from uniavgen.shards.sample import FaceTrack, Sample, Word, decode_audio, decode_video, rasterise_oval
from uniavgen.shards.text import join_words, word_gaps, word_spans
from uniavgen.shards.timing import LATENT_STRIDE, SAMPLE_RATE, VIDEO_FPS, samples_for_frames
from uniavgen.train.codec.config import TOKEN_STRIDE, VIDEO_STRIDE
from uniavgen.train.data.config import DataConfig
from uniavgen.train.data.face_crop import crop_ovals, cut_crops, mouth_boxes, place_crops
from uniavgen.train.data.word_gaps import choose_part, cuts_at_gaps, words_between

REFERENCE_GAP = VIDEO_FPS // 2
"""Frames between the window and its reference frame, if the clip is long enough: 0.5 s."""
SHORTEST_REFERENCE = VIDEO_FPS // 4
"""With less reference audio (0.25 s, in frames) outside the window, the clip has no reference voice."""


Focus = tuple[float, float]
"""A point (x, y) of a frame around which it is cropped, in fractions of its width and height."""


class Window(NamedTuple):
    """Start of a window and where its references come from, in pixel frames of the clip."""

    start: int
    reference_frame: int
    reference_audio_start: int
    reference_audio_frames: int


@dataclass(frozen=True)
class Crop:
    """One window of a sample, decoded, before the codecs.

    frames uint8 [F, H, W, 3], reference_frame uint8 [1, H, W, 3] and face float32 [T, H/32, W/32] are None in
    audio-only work; mouth float32 [T, H/16, W/16] is there if `mouth_mask` is set; waveform float32 [1500 F]
    and reference_waveform float32 [1500 Fr] are at 24 kHz. `start` is the first frame of the window,
    `reference_inside` says that a reference had to come from the window itself, `voice_inside` that the
    reference audio may overlap the window, so that no task may use it, `bucket` is the number of the window's
    shape, and `audio_samples` the part of the waveform that is not padding (None: all of it).
    """

    key: str
    start: int
    waveform: np.ndarray
    reference_waveform: np.ndarray
    speech_text: str
    caption: str
    frames: np.ndarray | None = None
    reference_frame: np.ndarray | None = None
    face: np.ndarray | None = None
    mouth: np.ndarray | None = None
    reference_inside: bool = False
    voice_inside: bool = False
    bucket: int = 0
    audio_samples: int | None = None


def random_for(seed: int, step: int, index: int) -> np.random.Generator:
    """Generator of all random choices about sample `index` of the global batch at `step`."""
    return np.random.default_rng([seed, step, index])


def crop_sample(
    sample: Sample,
    config: DataConfig,
    random: np.random.Generator,
    *,
    with_video: bool = True,
    needs_voice: bool = False,
) -> Crop:
    """Choose a random window and decode it.

    `needs_voice`: the window leaves room for a reference voice. Raises UserError of kind `short-clip`,
    `no-voice` or `damaged-sample`.
    """
    starts = _count_starts(sample, config)
    start = int(random.integers(starts))
    if needs_voice:
        start = start_beside_voice(start, starts - 1, config, sample.key)
    window = choose_window(sample.face.score, start, config, random)
    return cut_windows(sample, [window], config, with_video=with_video)[0]


def start_beside_voice(start: int, last: int, config: DataConfig, key: str) -> int:
    """The start in 0..last nearest to `start` that leaves audio for a reference voice outside the window.

    Raises UserError of kind `no-voice` if there is none.
    """
    needed = min(SHORTEST_REFERENCE, config.reference_frames)
    if last < needed:
        raise UserError(
            f"clip {key} has no audio outside the window of {config.frames} frames for a reference voice",
            kind="no-voice",
        )
    if max(start, last - start) >= needed:
        return start
    return last if 2 * start >= last else 0


def fixed_windows(sample: Sample, config: DataConfig) -> list[Window]:
    """The windows of a clip that are cached: at most `config.cached.windows`, always the same.

    The clip is divided into that many equal parts, and one window starts in each. All start at the same phase
    of their part; the phase is drawn from the clip id, so over a corpus every start is as likely as under
    random crops. Raises UserError of kind `short-clip`.
    """
    starts, windows = _count_starts(sample, config), config.cached.windows
    random = np.random.default_rng(list(sample.key.encode()))
    phase = random.random()
    chosen = sorted({int((number + phase) / windows * starts) for number in range(windows)})
    return [choose_window(sample.face.score, start, config, random) for start in chosen]


def _count_starts(sample: Sample, config: DataConfig) -> int:
    """Number of frames at which a window of the clip may start."""
    total = len(sample.face.score)
    if total < config.frames:
        raise UserError(
            f"clip {sample.key} has {total} frames, the window {config.frames}", kind="short-clip"
        )
    return total - config.frames + 1


def choose_window(score: np.ndarray, start: int, config: DataConfig, random: np.random.Generator) -> Window:
    """A window at `start` with random references. score [F]: face detection score of every frame."""
    reference_frame = choose_reference_frame(score, start, config.frames, random)
    audio = choose_reference_audio(len(score), start, config.frames, config.reference_frames, random)
    return Window(start, reference_frame, *audio)


def choose_reference_frame(score: np.ndarray, start: int, frames: int, random: np.random.Generator) -> int:
    """A random frame with a face: `REFERENCE_GAP` away from the window, else outside it, else any."""
    index = np.arange(len(score))
    outside = (index < start) | (index >= start + frames)
    away = (index < start - REFERENCE_GAP) | (index >= start + frames + REFERENCE_GAP)
    for allowed in (away & (score > 0), outside & (score > 0), score > 0, score >= 0):
        if allowed.any():
            return int(random.choice(index[allowed]))
    raise UserError("a clip without frames", kind="damaged-sample")


def choose_reference_audio(
    total: int, start: int, frames: int, wanted: int, random: np.random.Generator
) -> tuple[int, int]:
    """(first frame, frames) of the reference audio: from the longer part outside the window, else inside.

    Audio from inside belongs to no reference voice: `Crop.voice_inside`.
    """
    parts = [(0, start), (start + frames, total - start - frames)]
    first, length = max(parts, key=lambda part: part[1])
    if length < min(SHORTEST_REFERENCE, wanted):
        first, length = start, frames
    taken = min(length, wanted)
    return first + int(random.integers(length - taken + 1)), taken


def cut_windows(
    sample: Sample, windows: Sequence[Window], config: DataConfig, *, with_video: bool = True
) -> list[Crop]:
    """Decode windows of a sample; its audio and its video are opened once.

    Raises UserError of kind `damaged-sample`.
    """
    try:
        waveform = decode_audio(sample.audio)
        crops = [_cut_audio(sample, waveform, window, config) for window in windows]
        return _add_video(crops, sample, windows, config) if with_video else crops
    except (OSError, RuntimeError, ValueError) as error:  # raised by PyAV and soundfile for damaged media
        raise UserError(f"sample {sample.key} cannot be decoded: {error}", kind="damaged-sample") from error


def _cut_audio(sample: Sample, waveform: np.ndarray, window: Window, config: DataConfig) -> Crop:
    """The crop of a window without its video parts."""
    inside = range(window.start, window.start + config.frames)
    reference = _audio_span(waveform, window.reference_audio_start, window.reference_audio_frames, sample.key)
    return Crop(
        key=sample.key,
        start=window.start,
        waveform=_audio_span(waveform, window.start, config.frames, sample.key),
        reference_waveform=_repeat(reference, config.reference_frames),
        speech_text=words_in_window(sample.meta.transcript, sample.meta.words, window.start, config.frames),
        caption=sample.meta.caption,
        reference_inside=window.reference_frame in inside or window.reference_audio_start in inside,
        voice_inside=window.reference_audio_start in inside,
    )


def words_in_window(transcript: str, words: Sequence[Word], start: int, frames: int) -> str:
    """The part of a transcript whose words have their middle within the window of pixel frames."""
    first, last = start / VIDEO_FPS, (start + frames) / VIDEO_FPS
    texts = [word.text for word in words]
    inside = [
        (word.text, gap)
        for word, gap in zip(words, word_gaps(transcript, texts), strict=True)
        if first <= (word.start_s + word.end_s) / 2 < last
    ]
    return join_words((text for text, _ in inside), (gap for _, gap in inside))


def _audio_span(waveform: np.ndarray, start: int, frames: int, key: str) -> np.ndarray:
    """Audio of a span of pixel frames.

    Up to one frame may be missing at the end, as codecs round: it is zero-padded.
    """
    first, length = samples_for_frames(start), samples_for_frames(frames)
    part = waveform[first : first + length]
    if length - len(part) > samples_for_frames(1):
        raise UserError(
            f"the audio of {key} is {(length - len(part)) / 24:.0f} ms shorter than its video",
            kind="damaged-sample",
        )
    return np.pad(part, (0, length - len(part)))


def _repeat(waveform: np.ndarray, frames: int) -> np.ndarray:
    """A waveform of exactly `frames` pixel frames: longer audio is cut, shorter audio is repeated."""
    return np.resize(waveform, samples_for_frames(frames))


def _add_video(
    crops: list[Crop], sample: Sample, windows: Sequence[Window], config: DataConfig
) -> list[Crop]:
    """The crops with frames, reference frame and face mask; each frame is decoded once."""
    spans = [range(window.start, window.start + config.frames) for window in windows]
    indices = sorted(
        {
            index
            for window, span in zip(windows, spans, strict=True)
            for index in (window.reference_frame, *span)
        }
    )
    pixels = decode_video(sample.video, indices)
    fitted, oval = fit_video(pixels, indices, sample.face, config)
    row_of = {index: row for row, index in enumerate(indices)}
    target, score = (config.height, config.width), sample.face.score
    return [
        replace(
            crop,
            frames=fitted[[row_of[index] for index in span]],
            reference_frame=fitted[[row_of[window.reference_frame]]],
            face=latent_shares(oval[span], score[span], target, TOKEN_STRIDE),
            mouth=latent_shares(mouth_boxes(oval[span]), score[span], target, VIDEO_STRIDE)
            if config.mouth_mask
            else None,
        )
        for crop, window, span in zip(crops, windows, spans, strict=True)
    ]


def fit_video(
    pixels: np.ndarray, indices: list[int], face: FaceTrack, config: DataConfig
) -> tuple[np.ndarray, np.ndarray]:
    """The frames `indices` in the window's size and crop, and all ovals [F, P, 2] in fractions of it."""
    source, target = (pixels.shape[1], pixels.shape[2]), (config.height, config.width)
    if config.follows_face:
        placement = place_crops(face, source, target, config.crop)
        return cut_crops(pixels, placement.rows(indices)), crop_ovals(face, placement, source)
    focus = face_focus(face) if config.crop == "face" else None
    fitted = np.stack([fit_frame(frame, *target, focus) for frame in pixels])
    return fitted, fitted_ovals(face.oval, source, target, focus)


def face_focus(face: FaceTrack) -> Focus | None:
    """The centre of a clip's face, from the median of its boxes (as ingest crops); None if it has no face."""
    seen = face.box[face.score > 0]
    return box_centre(np.median(seen, axis=0)) if len(seen) else None


def box_centre(box: Sequence[float] | np.ndarray) -> Focus:
    """The centre of a box (x0, y0, x1, y1)."""
    x0, y0, x1, y1 = (float(edge) for edge in box)
    return (x0 + x1) / 2, (y0 + y1) / 2


def fit_frame(frame: np.ndarray, height: int, width: int, focus: Focus | None = None) -> np.ndarray:
    """Resize uint8 [h, w, 3] to cover height x width and crop around `focus` (None: the centre), in one
    resampling."""
    import cv2

    scale, (top, left) = _scale_and_offset(frame.shape[:2], (height, width), focus)
    # crop in the source first, so that the part that stays maps onto the target exactly
    y0, x0 = round(top / scale), round(left / scale)
    part = frame[y0 : y0 + round(height / scale), x0 : x0 + round(width / scale)]
    return cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def fitted_ovals(
    oval: np.ndarray, source: tuple[int, int], target: tuple[int, int], focus: Focus | None = None
) -> np.ndarray:
    """Ovals [F, P, 2] of a frame in fractions of what `fit_frame` makes of it, with the same `focus`."""
    scale, (top, left) = _scale_and_offset(source, target, focus)
    size = np.array([source[1], source[0]]) * scale
    fractions: np.ndarray = (oval * size - [left, top]) / [target[1], target[0]]
    return fractions


def latent_shares(oval: np.ndarray, score: np.ndarray, target: tuple[int, int], stride: int) -> np.ndarray:
    """Share of each cell of `stride` px inside an outline [F, P, 2]: float32 [T, h, w], means a latent."""
    per_frame = rasterise_oval(oval, score, target[0] // stride, target[1] // stride)
    later = per_frame[1:].reshape(-1, LATENT_STRIDE, *per_frame.shape[1:]).mean(axis=1)
    return np.concatenate([per_frame[:1], later])


def _scale_and_offset(
    source: tuple[int, int], target: tuple[int, int], focus: Focus | None = None
) -> tuple[float, tuple[float, float]]:
    """Scale with which the source covers the target, and (top, left) crop margins in scaled px.

    The crop lies around `focus`, moved into the frame.
    """
    scale = max(target[0] / source[0], target[1] / source[1])
    spare = source[0] * scale - target[0], source[1] * scale - target[1]
    if focus is None:
        return scale, (spare[0] / 2, spare[1] / 2)
    wanted = focus[1] * source[0] * scale - target[0] / 2, focus[0] * source[1] * scale - target[1] / 2
    return scale, (min(max(wanted[0], 0.0), spare[0]), min(max(wanted[1], 0.0), spare[1]))


def crop_utterance(
    utterance: Utterance,
    other: Utterance | None,
    config: DataConfig,
    random: np.random.Generator,
    emilia: EmiliaConfig | None = None,
) -> Crop:
    """A crop of an Emilia utterance.

    `other`: a second utterance of the same speaker, for the reference audio. `emilia`: how longer utterances
    are cropped, and whether padding is ignored.

    An utterance that fits the window starts with it and is followed by silence, with its whole text: there
    are no word times by which a text could be cut. Of a longer one a part is taken (`utterance_part`).
    Without `other` the reference is a part of the utterance itself.
    """
    emilia = emilia or EmiliaConfig()
    start, part, speech_text = utterance_part(utterance, config, random, emilia)
    reference = (other or utterance).waveform
    first = int(random.integers(max(1, _whole_frames(reference) - config.reference_frames + 1)))
    reference_part = reference[samples_for_frames(first) :][: samples_for_frames(config.reference_frames)]
    return Crop(
        key=utterance.key,
        start=start,
        waveform=np.pad(part, (0, samples_for_frames(config.frames) - len(part))),
        reference_waveform=_repeat(reference_part, config.reference_frames),
        speech_text=speech_text,
        caption="",
        reference_inside=other is None,
        voice_inside=other is None,
        audio_samples=len(part) if emilia.padding == "ignored" else None,
    )


def utterance_part(
    utterance: Utterance, config: DataConfig, random: np.random.Generator, emilia: EmiliaConfig
) -> tuple[int, np.ndarray, str]:
    """First frame, audio and text of the part of an utterance that fits the window.

    With `word_gaps` a longer one is cut at two pauses between words. Else, and where no pause fits, a random
    part is taken with the text that falls into it if all characters take equally long.
    """
    start, text, waveform = 0, utterance.meta.text.strip(), utterance.waveform
    if utterance.meta.duration > config.frames / VIDEO_FPS:
        if emilia.word_gaps:
            window_s = config.frames / VIDEO_FPS
            chosen = choose_part(cuts_at_gaps(text, waveform), window_s, random)
            if chosen is not None:
                first, last = (round(cut.seconds * SAMPLE_RATE) for cut in chosen)
                part = waveform[first:last][: samples_for_frames(config.frames)]
                return int(chosen[0].seconds * VIDEO_FPS), part, words_between(text, *chosen)
        start = int(random.integers(max(1, _whole_frames(waveform) - config.frames + 1)))
        text = text_in_window(text, utterance.meta.duration, start, config.frames)
    part = waveform[samples_for_frames(start) :][: samples_for_frames(config.frames)]
    return start, part, text


def text_in_window(text: str, seconds: float, start: int, frames: int) -> str:
    """Words whose middle lies in the window, if all characters of `text` take equal parts of `seconds`.

    In scripts without spaces: characters instead of words.
    """
    first, last = (edge / VIDEO_FPS / seconds * len(text) for edge in (start, start + frames))
    inside = [span for span in word_spans(text) if first <= sum(span) / 2 < last]
    return text[inside[0][0] : inside[-1][1]] if inside else ""


def _whole_frames(waveform: np.ndarray) -> int:
    return len(waveform) // samples_for_frames(1)
