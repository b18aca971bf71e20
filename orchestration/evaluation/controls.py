"""Controls of a metric: real clips, through the codec, lightly disturbed, and fully swapped.

A metric is trusted only if it orders real > disturbed > swapped (`statistics.order_of`). What is disturbed
depends on what the metric measures; `other` is a real clip of another person where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from uniavgen.orchestration.evaluation.videos import Media

if TYPE_CHECKING:
    from uniavgen.train.codec.registry import CodecConfig

LEVELS = ("real", "disturbed", "swapped")
CODEC = "codec"
"""Real clips encoded and decoded by the model's codecs: what a perfect model could reach."""

Change = Callable[[Media, Media], Media]


@dataclass(frozen=True)
class Control:
    """The two changes of a kind of metric. Each gets a real clip and another one. `says` describes both."""

    disturbed: Change
    swapped: Change
    says: str

    def media(self, level: str, clip: Media, other: Media) -> Media:
        """The clip at a level of `LEVELS`."""
        changes: dict[str, Change] = {"disturbed": self.disturbed, "swapped": self.swapped}
        return changes[level](clip, other) if level in changes else clip


def _with_sound(share: float) -> Change:
    """Replace the last `share` of the sound by that of the other clip."""

    def change(clip: Media, other: Media) -> Media:
        kept = round(len(clip.pcm) * (1 - share))
        foreign = looped(other.pcm, len(clip.pcm))
        return replace(clip, pcm=np.concatenate([clip.pcm[:kept], foreign[kept:]]))

    return change


def _with_frames(share: float) -> Change:
    """Replace the last `share` of the frames by those of the other clip, scaled to the same size."""

    def change(clip: Media, other: Media) -> Media:
        import cv2

        count = len(clip.frames)
        kept = round(count * (1 - share))
        height, width = clip.frames.shape[1:3]
        foreign = [
            cv2.resize(other.frames[index % len(other.frames)], (width, height), interpolation=cv2.INTER_AREA)
            for index in range(kept, count)
        ]
        return replace(clip, frames=np.stack([*clip.frames[:kept], *foreign]))

    return change


def _blank(share: float) -> Change:
    """Fill the last `share` of the frames with grey."""

    def change(clip: Media, _: Media) -> Media:
        frames = clip.frames.copy()
        frames[round(len(frames) * (1 - share)) :] = 128
        return replace(clip, frames=frames)

    return change


def _with_noise(snr_db: float) -> Change:
    return lambda clip, _: replace(clip, pcm=with_noise(clip.pcm, snr_db))


def _blurred(sigma: float) -> Change:
    def change(clip: Media, _: Media) -> Media:
        import cv2

        return replace(clip, frames=np.stack([cv2.GaussianBlur(f, (0, 0), sigma) for f in clip.frames]))

    return change


def _slowed(factor: int) -> Change:
    """Show the first 1 / `factor` of the frames over the whole length; 0 stands still at the first frame."""

    def change(clip: Media, _: Media) -> Media:
        at = np.arange(len(clip.frames)) // factor if factor else np.zeros(len(clip.frames), int)
        return replace(clip, frames=clip.frames[at])

    return change


SOUND = Control(_with_sound(0.5), _with_sound(1.0), "half of, then all sound of another clip")
SPLICE = Control(_with_sound(0.25), _with_sound(0.5), "the last quarter, then the last half of another voice")
NOISE = Control(_with_noise(20), _with_noise(0), "white noise at 20, then 0 dB")
FACE = Control(_with_frames(0.5), _with_frames(1.0), "half of, then all frames of another person")
FACE_SPLICE = Control(_with_frames(0.25), _with_frames(0.5), "last quarter, then last half of another person")
BLANK = Control(_blank(0.25), _blank(0.5), "the last quarter, then the last half of the frames grey")
BLUR = Control(_blurred(1.0), _blurred(4.0), "Gaussian blur of 1, then 4 pixels")
STILL = Control(_slowed(4), _slowed(0), "slowed four times, then standing still")


def with_noise(pcm: np.ndarray, snr_db: float, seed: int = 0) -> np.ndarray:
    """The audio int16 [n] with white noise `snr_db` below its RMS level."""
    audio = pcm.astype(np.float64)
    level = np.sqrt(np.square(audio).mean()) * 10 ** (-snr_db / 20)
    noisy = audio + np.random.default_rng(seed).normal(0, level, len(audio))
    return np.clip(np.round(noisy), -32768, 32767).astype(np.int16)


def looped(pcm: np.ndarray, samples: int) -> np.ndarray:
    """The audio [n] repeated or cut to `samples`."""
    return np.resize(pcm, samples) if len(pcm) else np.zeros(samples, pcm.dtype)


def partners(persons: Sequence[str]) -> list[int]:
    """For each real clip the index of the next one of another person; of the next clip if there is none.

    Raises ValueError for fewer than two clips.
    """
    count = len(persons)
    if count < 2:
        raise ValueError("a swap needs two clips")
    chosen = []
    for index in range(count):
        others = [(index + step) % count for step in range(1, count)]
        chosen.append(next((each for each in others if persons[each] != persons[index]), others[0]))
    return chosen


class CodecPass:
    """Encodes and decodes clips with the codecs that a run names, loaded once."""

    def __init__(self, config: CodecConfig, device: str = "cpu") -> None:
        from uniavgen.train.codec.audio import MelCodec
        from uniavgen.train.codec.registry import VIDEO_CODECS, load_vocoder

        self._video = VIDEO_CODECS[config.video].load(config.video_weights, device)
        self._mel = MelCodec(config.mel, device)
        self._vocoder = load_vocoder(config, self._mel, device)
        self.digest = f"{self._video.digest} {self._mel.digest} {config.vocoder}"

    def __call__(self, clip: Media) -> Media:
        """The clip after encoding and decoding, cut to whole latent frames and blocks of 16 pixels."""
        import torch
        from scipy.signal import resample_poly

        from uniavgen.ingest.records import AUDIO_RATE
        from uniavgen.shards.timing import SAMPLE_RATE, mels_for_frames, samples_for_frames
        from uniavgen.train.codec.video import to_pixels

        count = (len(clip.frames) - 1) // 4 * 4 + 1
        height, width = (side // 16 * 16 for side in clip.frames.shape[1:3])
        frames = torch.from_numpy(np.ascontiguousarray(clip.frames[:count, :height, :width]))
        samples = samples_for_frames(count)
        wave = resample_poly(clip.pcm.astype(np.float32) / 32768, SAMPLE_RATE, AUDIO_RATE)[:samples]
        wave = np.pad(wave, (0, samples - len(wave))).astype(np.float32)
        with torch.inference_mode():
            shown = to_pixels(self._video.decode(self._video.encode(frames[None])))[0]
            mel = self._mel.encode(torch.from_numpy(wave)[None], mels_for_frames(count))
            heard = self._vocoder.decode(mel, samples)[0]
        pcm = resample_poly(heard.float().cpu().numpy(), AUDIO_RATE, SAMPLE_RATE)
        return replace(clip, frames=shown.cpu().numpy(), pcm=to_pcm(pcm))


def to_pcm(waveform: np.ndarray) -> np.ndarray:
    """A waveform in -1..1 as int16."""
    return np.clip(np.round(waveform * 32768), -32768, 32767).astype(np.int16)
