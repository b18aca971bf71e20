"""Clips with known mouth motion and audio from the demo's builder, for sync and active-speaker tests."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.signal import resample_poly

from uniavgen.ingest.records import AUDIO_RATE
from uniavgen.orchestration.demo import face, speech
from uniavgen.orchestration.demo.script import SENTENCES
from uniavgen.orchestration.demo.visemes import WIDEST, Phone, mouth_track
from uniavgen.shards.timing import VIDEO_FPS

SECONDS = 5.0


@lru_cache
def spoken(voice: str, line: int) -> tuple[tuple[Phone, ...], np.ndarray]:
    """Phones and audio (int16, 16 kHz) of one sentence with silence around it. Voice "reader": a passage."""
    utterance = speech.read_passage(line) if voice == "reader" else speech.say(SENTENCES[line], voice)
    track = speech.assemble([utterance], seed=line)
    pcm = resample_poly(track.waveform, AUDIO_RATE, speech.RATE) * 32767
    return track.phones, pcm.clip(-32768, 32767).astype(np.int16)


def frame_times(seconds: float = SECONDS) -> list[float]:
    return [frame / VIDEO_FPS for frame in range(round(seconds * VIDEO_FPS))]


def mouth(phones: tuple[Phone, ...], seconds: float = SECONDS) -> np.ndarray:
    """Known lip opening over face height at 16 fps, plus landmark noise (0.2 % of the face height)."""
    opening, _ = mouth_track(phones, np.array(frame_times(seconds)))
    return opening * WIDEST + np.random.default_rng(len(phones)).normal(0, 0.002, len(opening))


def heard(pcm: np.ndarray, margin_s: float, late_ms: float = 0.0, seconds: float = SECONDS) -> np.ndarray:
    """Audio of `seconds` with `margin_s` on each side, delayed by `late_ms`; quiet noise beyond its ends."""
    first = round((-margin_s - late_ms / 1000) * AUDIO_RATE)
    at = np.arange(first, first + round((seconds + 2 * margin_s) * AUDIO_RATE))
    room = np.random.default_rng(7).normal(0, 20, len(at))
    inside = (at >= 0) & (at < len(pcm))
    return np.where(inside, pcm[at.clip(0, len(pcm) - 1)], room).astype(np.int16)


def chewing(seconds: float = SECONDS) -> tuple[Phone, ...]:
    """Phones of a mouth that opens and closes about twice a second without speech."""
    rng = np.random.default_rng(4)
    phones, at = [], 0.2
    while at < seconds:
        half = rng.uniform(0.2, 0.35)
        phones += [Phone("ɛ", at, at + half), Phone("m", at + half, at + 2 * half)]
        at += 2 * half
    return tuple(phones)


def rendered_frames(
    look: str, phones: tuple[Phone, ...], seed: int, size: int = 256, seconds: float = SECONDS
) -> list[np.ndarray]:
    """Frames uint8 [size, size, 3] at 16 fps of a head that says `phones`."""
    return [frame.picture for frame in face.animate(look, phones, frame_times(seconds), size=size, seed=seed)]
