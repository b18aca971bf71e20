"""VBench's definitions of subject consistency (SC), dynamic degree (DD) and imaging quality (IQ).

The formulas take features, flows or qualities of frames; the network that gives them is the caller's, and
part of the metric's name. Below them: OpenCV's DIS flow, and BRISQUE (Mittal et al. 2012), whose support
vectors are a text file of libsvm.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from uniavgen.shards.weights import resolve

FASTEST_SHARE = 0.05
MOVING_PX, MOVING_SIDE = 6.0, 256
"""A pair of frames moves if its fastest pixels move more than this, for a shorter side of 256 px."""
MOVING_PAIRS, MOVING_FRAMES = 4, 16

_LOW = (
    0.336999, 0.019667, 0.23, -0.125959, 0.000167, 0.000616, 0.231, -0.125873, 0.000165, 0.0006, 0.241,
    -0.128814, 0.000179, 0.000386, 0.243, -0.13308, 0.000182, 0.000421, 0.436998, 0.016929, 0.247,
    -0.200231, 0.000104, 0.000834, 0.257, -0.200017, 0.000112, 0.000876, 0.257, -0.155072, 0.000112,
    0.000356, 0.258, -0.154374, 0.000117, 0.000351,
)  # fmt: skip
_HIGH = (
    9.999411, 0.807472, 1.644021, 0.202917, 0.712384, 0.468672, 1.644021, 0.169548, 0.713132, 0.467896,
    1.553016, 0.101368, 0.687324, 0.533087, 1.554016, 0.101, 0.689177, 0.533133, 3.639918, 0.800955,
    1.096995, 0.175286, 0.755547, 0.39927, 1.095995, 0.155928, 0.751488, 0.402398, 1.041992, 0.093209,
    0.623516, 0.532925, 1.042992, 0.093714, 0.621958, 0.534484,
)  # fmt: skip
"""Range of each feature over the LIVE images, published with the SVM: scaled to -1..1."""


def subject_consistency(features: np.ndarray) -> np.ndarray:
    """SC of each frame but the first [T - 1], from features [T, d].

    Mean of the cosines to the frame before and to the first frame, each at least 0. VBench's SC of a set is
    the mean over all frames of all videos.
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    before = np.clip((unit[1:] * unit[:-1]).sum(1), 0, None)
    first = np.clip(unit[1:] @ unit[0], 0, None)
    return np.asarray((before + first) / 2)


def thinned(count: int, fps: float) -> np.ndarray:
    """Indices of the frames that DD uses: every round(fps / 8)-th."""
    return np.arange(0, count, max(1, round(fps / 8)))


def fastest_motion(flow: np.ndarray) -> float:
    """Mean magnitude of the fastest 5 % of a flow [H, W, 2], in pixels."""
    speed = np.sort(np.linalg.norm(flow, axis=-1), axis=None)
    return float(speed[len(speed) - max(1, int(len(speed) * FASTEST_SHARE)) :].mean())


def is_dynamic(motions: Sequence[float], height: int, width: int) -> bool:
    """DD of one video: enough pairs of its thinned frames move. `motions`: `fastest_motion` of each pair."""
    limit = MOVING_PX * min(height, width) / MOVING_SIDE
    needed = round(MOVING_PAIRS * (len(motions) + 1) / MOVING_FRAMES)
    return sum(motion > limit for motion in motions) >= needed


def imaging_quality(qualities: Sequence[float]) -> float:
    """IQ of one video from MUSIQ's qualities 0..100 of its frames."""
    return float(np.mean(qualities)) / 100


def dis_flows(frames: np.ndarray) -> list[np.ndarray]:
    """Optical flow [H, W, 2] between neighbouring frames uint8 [T, H, W, 3], by OpenCV's DIS (no weights)."""
    import cv2

    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    return [
        flow.calc(before, after, None)  # type: ignore[call-overload]
        for before, after in pairwise(grey)
    ]


class Brisque:
    """The SVM with its weights. Raises UserError (missing-weights)."""

    def __init__(self) -> None:
        self._gamma, self._rho, self._coefficients, self._vectors = read_svm(resolve("brisque") / "svm.txt")

    def quality(self, frame: np.ndarray) -> float:
        """Quality 0..1 of a frame uint8 [H, W, 3] RGB: 1 minus BRISQUE's score over 100, clipped."""
        import cv2

        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
        features = np.asarray(cv2.quality.QualityBRISQUE.computeFeatures(grey), np.float64).ravel()
        low, high = np.array(_LOW), np.array(_HIGH)
        scaled = 2 * (features - low) / (high - low) - 1
        score = rbf_decision(scaled, self._vectors, self._coefficients, self._gamma, self._rho)
        return float(np.clip(1 - score / 100, 0, 1))


def rbf_decision(
    features: np.ndarray, vectors: np.ndarray, coefficients: np.ndarray, gamma: float, rho: float
) -> float:
    """Decision of a support vector regression: sum of c_i exp(-gamma |x - v_i|^2) minus rho."""
    return float(coefficients @ np.exp(-gamma * np.square(vectors - features).sum(axis=1)) - rho)


def read_svm(path: Path) -> tuple[float, float, np.ndarray, np.ndarray]:
    """gamma, rho, coefficients [n] and support vectors [n, 36] of a libsvm text file."""
    header, _, body = path.read_text().partition("\nSV\n")
    facts = dict(line.split(maxsplit=1) for line in header.splitlines())
    rows = [line.split() for line in body.splitlines() if line.strip()]
    vectors = np.zeros((len(rows), len(_LOW)))
    for row, (_, *entries) in enumerate(rows):
        for entry in entries:
            index, _, value = entry.partition(":")
            vectors[row, int(index) - 1] = float(value)
    return float(facts["gamma"]), float(facts["rho"]), np.array([float(row[0]) for row in rows]), vectors
