"""How the channels of a track become one: the plain mix, one side, or one side minus the other.

The mix of a channel with silence is 6 dB low, and the mix of a channel with its inverse is silent.
"""

from __future__ import annotations

from typing import Any

import numpy as np

SILENT_POWER = 1e-7
"""Mean power of a second below which a channel is silent (-70 dBFS)."""

ONE_SIDED = 1e-2
"""Power of the other channels over that of the loudest one, below which only that one is used (-20 dB).
Heuristic."""

OPPOSITE = -0.7
"""Correlation of left and right below which a second is in opposite phase. Heuristic."""

SECONDS_IN_PHASE = 0.2
"""Share of the seconds that are in phase, and of those that are opposite, from which neither mix is right.
Heuristic."""

LEFT, RIGHT, PRODUCT = range(3)
"""Columns of the powers of a second of two channels: left, right and their product."""

MIXES = {"left": "c0", "right": "c1", "difference": "0.5*c0-0.5*c1", "center": "FC"}
"""Mixes other than the plain one, in the words of ffmpeg's `pan`."""


class ChannelPower:
    """Power of the channels of a track, second by second. Frames are added one by one."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.sounding_s = 0.0
        """Seconds in which any channel holds sound."""
        self._rows: list[np.ndarray] = []
        self._sum, self._count = np.zeros(3), 0
        self._center, self._others = 0.0, 0.0
        """Energy of the center and of all others, in frames of more than two channels."""

    def add(self, frame: Any) -> None:
        """Add a decoded PyAV frame. Frames of one channel count for sound only."""
        samples = as_float(frame)
        seconds = samples.shape[1] / max(1, frame.sample_rate)
        self.seconds += seconds
        powers = np.einsum("ct,ct->c", samples, samples)
        if powers.max(initial=0.0) >= SILENT_POWER * samples.shape[1]:
            self.sounding_s += seconds
        if len(samples) == 2:
            self._sum += (powers[0], powers[1], float(samples[0] @ samples[1]))
            self._count += samples.shape[1]
            if self._count >= frame.sample_rate:
                self._flush()
        elif len(samples) > 2:
            names = [channel.name for channel in frame.layout.channels]
            center = float(powers[names.index("FC")]) if "FC" in names else 0.0
            self._center += center
            self._others += float(powers.sum()) - center

    def _flush(self) -> None:
        if self._count:
            self._rows.append(self._sum / self._count)
        self._sum, self._count = np.zeros(3), 0

    def mono(self) -> tuple[str, float | None]:
        """How to make one channel of several, and the correlation of left and right."""
        self._flush()
        mono, correlation = choose_mono(np.array(self._rows).reshape(-1, 3))
        if mono == "mix" and self._others < ONE_SIDED * self._center:
            mono = "center"
        return mono, correlation


def choose_mono(powers: np.ndarray) -> tuple[str, float | None]:
    """`mix`, `left`, `right` or `difference`, and the correlation of left and right.

    `powers` is float [seconds, 3], see `LEFT`. The correlation is None where a side is silent.
    """
    loud = powers[powers[:, [LEFT, RIGHT]].max(axis=1, initial=0.0) >= SILENT_POWER]
    left, right, product = (float(value) for value in loud.sum(axis=0))
    if not len(loud):
        return "mix", None
    correlation = None
    if min(left, right) > 0.0:
        correlation = float(np.clip(product / np.sqrt(left * right), -1.0, 1.0))
    louder = "left" if left >= right else "right"
    if min(left, right) < ONE_SIDED * max(left, right):
        return louder, correlation
    each = loud[:, PRODUCT] / np.sqrt(np.maximum(loud[:, LEFT] * loud[:, RIGHT], 1e-20))
    sides = np.sort(loud[:, [LEFT, RIGHT]], axis=1)
    both = sides[:, 0] >= ONE_SIDED * sides[:, 1]
    opposite = float(((each < OPPOSITE) & both).mean())
    in_phase = float(((each > 0) & both).mean())
    if opposite >= SECONDS_IN_PHASE and in_phase >= SECONDS_IN_PHASE:
        return louder, correlation
    return ("difference" if opposite > 0.5 else "mix"), correlation


def mixed(samples: np.ndarray, names: list[str], mono: str) -> np.ndarray | None:
    """int16 [channels, n] as int16 [n] in the mix `mono`; None where its channels are not in the frame."""
    if mono == "center" and len(names) > 2 and "FC" in names:
        return samples[names.index("FC")]
    if mono in ("mix", "center") or len(names) != 2:
        return None
    left, right = samples.astype(np.int32)
    return {"left": left, "right": right, "difference": (left - right) // 2}[mono].astype(np.int16)


def as_float(frame: Any) -> np.ndarray:
    """float32 [channels, n] of a decoded PyAV frame."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, len(frame.layout.channels)).T
    if samples.dtype.kind == "f":
        return np.nan_to_num(np.asarray(samples, np.float32))
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    return samples.astype(np.float32) / float(-np.iinfo(samples.dtype).min)
