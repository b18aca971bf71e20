"""How good picture and sound are: small measurements of one picture or one stretch of sound each.

Goes in: arrays. Comes out: numbers in the units that `shards.corpus.SIGNALS` names; None where there is nothing to measure.
"""

from __future__ import annotations

import numpy as np

from ingest.records import AUDIO_RATE

SILENCE_DB = -100.0
"""Level given to digital silence."""

STILL = 0.05
"""Frames that differ by less than this (of 255 levels, on a 64-pixel picture) count as the same frame."""


def level_db(pcm: np.ndarray) -> float | None:
    """RMS level in dB of full scale of int16 [n]."""
    if not len(pcm):
        return None
    power = np.square(pcm.astype(np.float64) / 32768).mean()
    return max(SILENCE_DB, float(10 * np.log10(power))) if power > 0 else SILENCE_DB


def clipped_ratio(pcm: np.ndarray) -> float | None:
    """Share of samples in runs of two or more at full scale (a single one may be an honest peak)."""
    if not len(pcm):
        return None
    full = np.abs(pcm.astype(np.int32)) >= 32700
    beside = np.zeros(len(full), bool)
    beside[1:] |= full[:-1]
    beside[:-1] |= full[1:]
    return float((full & beside).mean())


def snr_db(pcm: np.ndarray) -> float | None:
    """Speech over background in dB: mean power of the loud half of 20 ms cells against the quietest tenth.

    Speech pauses even between words, so the quietest cells hold the background alone. Limited to 0..80 dB.
    """
    cell = AUDIO_RATE // 50
    cells = np.square(pcm[: len(pcm) // cell * cell].astype(np.float64) / 32768).reshape(-1, cell).mean(axis=1)
    if len(cells) < 10:
        return None
    ordered = np.sort(cells)
    background = ordered[: max(1, len(ordered) // 10)].mean() + 1e-10
    speech = ordered[len(ordered) // 2 :].mean()
    return float(np.clip(10 * np.log10(max(speech - background, 1e-10) / background), 0.0, 80.0))


def thumbnail(picture: np.ndarray) -> np.ndarray:
    """Brightness float32 [h, 64] of uint8 [H, W, 3] RGB, small enough to compare frames cheaply."""
    import cv2

    height, width = picture.shape[:2]
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (64, max(1, round(64 * height / width))), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float32)
