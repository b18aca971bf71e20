"""What published audio-visual networks look at and listen to: square face crops at 25 fps, and 13 MFCCs at 100 Hz.

Goes in: pictures with a face's box in each, or sound at 16 kHz. Comes out: arrays made as SyncNet's and Light-ASD's own
pipelines make them, so that their published weights see what they were trained on.
"""

from __future__ import annotations

import pickle
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from uniavgen.ingest.records import AUDIO_RATE
from uniavgen.shards.errors import UserError

if TYPE_CHECKING:
    from torch import nn

NETWORK_FPS = 25
"""Frames per second that both networks were trained at."""

CROP_PX = 224
MARGIN = 0.4
"""The crop reaches 1 + MARGIN half boxes either side, and is moved down by MARGIN (both pipelines' `cropScale`)."""

BORDER = 110
"""Grey level outside the picture (both pipelines)."""

SMOOTH_FRAMES = 13
"""Boxes are median-filtered over this many frames (both pipelines)."""

MFCC_HZ = 100
COEFFICIENTS, FILTERS, FFT, PREEMPHASIS, LIFTER = 13, 26, 512, 0.97, 22


def load_published(network: nn.Module, path: str, setting: str) -> None:
    """Fill a network from a checkpoint that the user names in `setting`.

    Raises UserError: missing-weights where there is no file, wrong-weights where it is not this network's.
    """
    import torch

    if not Path(path).is_file():
        raise UserError(
            "the named weights are not there",
            where=path or "no path",
            hint=f"set {setting} to the file",
            kind="missing-weights",
        )
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (
        RuntimeError,
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
    ) as error:
        raise UserError(
            "the file does not hold this network's weights",
            where=path,
            hint=f"name the published file in {setting}",
            kind="wrong-weights",
        ) from error


def face_crops(pictures: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Square crops uint8 [T, 224, 224, 3] of one face, forehead to below the chin, colours in the order given.

    `pictures` uint8 [T, H, W, 3] at 25 fps; `boxes` float [T, 4] (x0, y0, x1, y1) in fractions of the picture, NaN where the
    face is not seen: interpolated. Raises ValueError where it is never seen.
    """
    import cv2
    from scipy.ndimage import median_filter

    filled = _filled(boxes)
    height, width = pictures.shape[1:3]
    left, top, right, bottom = (filled * (width, height, width, height)).T
    half = median_filter(np.maximum(bottom - top, right - left) / 2, SMOOTH_FRAMES, mode="nearest")
    x = median_filter((left + right) / 2, SMOOTH_FRAMES, mode="nearest")
    y = median_filter((top + bottom) / 2, SMOOTH_FRAMES, mode="nearest")
    crops = np.empty((len(pictures), CROP_PX, CROP_PX, 3), np.uint8)
    for index, picture in enumerate(pictures):
        side = 2 * half[index] * (1 + MARGIN)
        corner = (x[index] - side / 2, y[index] - half[index])
        scale = CROP_PX / side
        place = [(0.5 - edge) * scale - 0.5 for edge in corner]  # pixels are counted at their centres
        move = np.array([[scale, 0, place[0]], [0, scale, place[1]]])
        cv2.warpAffine(
            picture,
            move,
            (CROP_PX, CROP_PX),
            dst=crops[index],
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(BORDER, BORDER, BORDER),
        )
    return crops


def mfcc(pcm: np.ndarray) -> np.ndarray:
    """MFCCs float32 [n, 13] at 100 Hz of int16 sound at 16 kHz, the first one its log energy.

    As python_speech_features computes them by default, which both networks were trained on: pre-emphasis 0.97, rectangular
    windows of 25 ms, 512 points, 26 filters up to 8 kHz, lifter 22; the last window is filled with zeros.
    """
    from scipy.fft import dct

    signal = pcm.astype(np.float64)
    signal = np.concatenate([signal[:1], signal[1:] - PREEMPHASIS * signal[:-1]])
    width, hop = AUDIO_RATE // 40, AUDIO_RATE // MFCC_HZ
    count = 1 if len(signal) <= width else 1 + -(-(len(signal) - width) // hop)
    padded = np.pad(signal, (0, max(0, (count - 1) * hop + width - len(signal))))
    windows = np.lib.stride_tricks.sliding_window_view(padded, width)[::hop][:count]
    power = np.square(np.abs(np.fft.rfft(windows, FFT))) / FFT
    least = np.finfo(float).eps
    bands = power @ _mel_filters().T
    coefficients = dct(np.log(np.where(bands == 0, least, bands)), type=2, axis=1, norm="ortho")[
        :, :COEFFICIENTS
    ]
    coefficients *= 1 + LIFTER / 2 * np.sin(np.pi * np.arange(COEFFICIENTS) / LIFTER)
    energy = power.sum(axis=1)
    coefficients[:, 0] = np.log(np.where(energy == 0, least, energy))
    return coefficients.astype(np.float32)


def interpolate_boxes(
    frames: np.ndarray, boxes: np.ndarray, rate_hz: float, times: np.ndarray, reach_s: float = 0.2
) -> np.ndarray:
    """Boxes float [T, 4] of one track at `times` [T] in seconds, between those of its `frames` int [N] counted at `rate_hz`;
    NaN where no frame of it is within `reach_s`."""
    at = np.asarray(frames) / rate_hz
    found = np.stack([np.interp(times, at, corner) for corner in np.asarray(boxes, float).T], axis=1)
    nearest = np.abs(at[None] - np.asarray(times)[:, None]).min(axis=1)
    found[nearest > reach_s] = np.nan
    return found


def _filled(boxes: np.ndarray) -> np.ndarray:
    seen = np.isfinite(boxes).all(axis=1)
    if not seen.any():
        raise ValueError("the face is in none of the pictures")
    at = np.arange(len(boxes))
    return np.stack([np.interp(at, at[seen], corner) for corner in boxes[seen].T], axis=1)


@lru_cache(maxsize=1)
def _mel_filters() -> np.ndarray:
    """Triangles on whole FFT bins: float64 [26, 257]."""
    highest = 2595 * np.log10(1 + AUDIO_RATE / 2 / 700)
    edges_hz = 700 * (10 ** (np.linspace(0, highest, FILTERS + 2) / 2595) - 1)
    edges = np.floor((FFT + 1) * edges_hz / AUDIO_RATE)
    bins = np.arange(FFT // 2 + 1)
    low, peak, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rise = (bins - low) / np.maximum(peak - low, 1)
    fall = (high - bins) / np.maximum(high - peak, 1)
    inside = (bins >= low) & (bins < high)
    return np.where(inside, np.where(bins < peak, rise, fall), 0.0)
