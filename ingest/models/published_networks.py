"""Shared by the published audio-visual networks SyncNet and Light-ASD: checkpoints, face crops and MFCCs.

Crops (25 fps) and MFCCs (100 Hz) are computed as in the networks' own pipelines, so that the published
weights get the inputs they were trained on.
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
"""The crop extends 1 + MARGIN half boxes to either side and is moved down by MARGIN (`cropScale` of both
pipelines)."""

BORDER = 110
"""Grey level outside the frame (both pipelines)."""

SMOOTH_FRAMES = 13
"""Boxes are median-filtered over this many frames (both pipelines)."""

MFCC_HZ = 100
COEFFICIENTS, FILTERS, FFT, PREEMPHASIS, LIFTER = 13, 26, 512, 0.97, 22


def load_published(network: nn.Module, path: str, setting: str) -> None:
    """Load a network strictly from a checkpoint that the user names in `setting`. No code in the file is run.

    Raises UserError: missing-weights where there is no file, wrong-weights where it does not fit the network.
    """
    import torch

    if not Path(path).is_file():
        raise UserError(
            "the weights file does not exist",
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
            "the file does not contain the weights of this network",
            where=path,
            hint=f"name the published file in {setting}",
            kind="wrong-weights",
        ) from error


def face_crops(frames: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Square crops uint8 [T, 224, 224, 3] of one face, forehead to below the chin, in the channel order of
    `frames`.

    `frames` uint8 [T, H, W, 3] at 25 fps; `boxes` float [T, 4] (x0, y0, x1, y1) in fractions of the frame,
    NaN where the face is not seen (interpolated). Raises ValueError where it is never seen.
    """
    import cv2
    from scipy.ndimage import median_filter

    filled = _fill_gaps(boxes)
    height, width = frames.shape[1:3]
    left, top, right, bottom = (filled * (width, height, width, height)).T
    half = median_filter(np.maximum(bottom - top, right - left) / 2, SMOOTH_FRAMES, mode="nearest")
    x = median_filter((left + right) / 2, SMOOTH_FRAMES, mode="nearest")
    y = median_filter((top + bottom) / 2, SMOOTH_FRAMES, mode="nearest")
    crops = np.empty((len(frames), CROP_PX, CROP_PX, 3), np.uint8)
    for index, frame in enumerate(frames):
        side = 2 * half[index] * (1 + MARGIN)
        corner = (x[index] - side / 2, y[index] - half[index])
        scale = CROP_PX / side
        shift = [(0.5 - edge) * scale - 0.5 for edge in corner]  # pixel positions are those of their centres
        transform = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
        cv2.warpAffine(
            frame,
            transform,
            (CROP_PX, CROP_PX),
            dst=crops[index],
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(BORDER, BORDER, BORDER),
        )
    return crops


def mfcc(pcm: np.ndarray) -> np.ndarray:
    """MFCCs float32 [n, 13] at 100 Hz of int16 audio at 16 kHz; coefficient 0 is the log energy.

    The defaults of python_speech_features, on which both networks were trained: pre-emphasis 0.97,
    rectangular windows of 25 ms, 512 points, 26 filters up to 8 kHz, lifter 22; the last window is padded
    with zeros. That library (0.6) gives the same float32 values on 187 s of speech, in 1.5 times the time; it
    has had no release since 2017 and no wheel, so it is not a dependency.
    """
    from scipy.fft import dct

    signal = pcm.astype(np.float64)
    signal = np.concatenate([signal[:1], signal[1:] - PREEMPHASIS * signal[:-1]])
    width, hop = AUDIO_RATE // 40, AUDIO_RATE // MFCC_HZ
    count = 1 if len(signal) <= width else 1 + -(-(len(signal) - width) // hop)
    padded = np.pad(signal, (0, max(0, (count - 1) * hop + width - len(signal))))
    windows = np.lib.stride_tricks.sliding_window_view(padded, width)[::hop][:count]
    power = np.square(np.abs(np.fft.rfft(windows, FFT))) / FFT
    epsilon = np.finfo(float).eps
    bands = power @ _mel_filters().T
    coefficients = dct(np.log(np.where(bands == 0, epsilon, bands)), type=2, axis=1, norm="ortho")[
        :, :COEFFICIENTS
    ]
    coefficients *= 1 + LIFTER / 2 * np.sin(np.pi * np.arange(COEFFICIENTS) / LIFTER)
    energy = power.sum(axis=1)
    coefficients[:, 0] = np.log(np.where(energy == 0, epsilon, energy))
    return coefficients.astype(np.float32)


def interpolate_boxes(
    frames: np.ndarray, boxes: np.ndarray, rate_hz: float, times: np.ndarray, reach_s: float = 0.2
) -> np.ndarray:
    """Boxes float [T, 4] of one track at `times` [T] in seconds, interpolated from those of its `frames` int
    [N], which count at `rate_hz`; NaN where no frame of the track is within `reach_s`.
    """
    frame_times = np.asarray(frames) / rate_hz
    interpolated = np.stack(
        [np.interp(times, frame_times, corner) for corner in np.asarray(boxes, float).T], axis=1
    )
    nearest = np.abs(frame_times[None] - np.asarray(times)[:, None]).min(axis=1)
    interpolated[nearest > reach_s] = np.nan
    return interpolated


def _fill_gaps(boxes: np.ndarray) -> np.ndarray:
    seen = np.isfinite(boxes).all(axis=1)
    if not seen.any():
        raise ValueError("the face is in none of the frames")
    index = np.arange(len(boxes))
    return np.stack([np.interp(index, index[seen], corner) for corner in boxes[seen].T], axis=1)


@lru_cache(maxsize=1)
def _mel_filters() -> np.ndarray:
    """Triangular mel filters on whole FFT bins: float64 [26, 257]."""
    highest = 2595 * np.log10(1 + AUDIO_RATE / 2 / 700)
    edges_hz = 700 * (10 ** (np.linspace(0, highest, FILTERS + 2) / 2595) - 1)
    edges = np.floor((FFT + 1) * edges_hz / AUDIO_RATE)
    bins = np.arange(FFT // 2 + 1)
    low, peak, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rise = (bins - low) / np.maximum(peak - low, 1)
    fall = (high - bins) / np.maximum(high - peak, 1)
    inside = (bins >= low) & (bins < high)
    return np.where(inside, np.where(bins < peak, rise, fall), 0.0)
