"""Planted cuts are found to the frame; a film without cuts has none."""

import itertools

import numpy as np
import pytest

from ingest.config import ShotConfig
from ingest.records import Span
from ingest.shots import ShotDetector, frames_of_change, spans_between

FPS = 25
CUTS = (40, 95, 160, 230)


def scene(seed: int, frames: int) -> np.ndarray:
    """A random soft picture that drifts sideways: uint8 [frames, 27, 48, 3]."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    wide = gaussian_filter(rng.uniform(0, 255, (27, 120, 3)), (4, 4, 0))
    wide = (wide - wide.min()) / np.ptp(wide) * rng.uniform(120, 255)
    at = [round(70 * abs((i / 240 + 0.5) % 1 - 0.5)) for i in range(frames)]
    return np.stack([wide[:, x : x + 48] for x in at]).astype(np.uint8)


def film() -> np.ndarray:
    edges = [0, *CUTS, 300]
    return np.concatenate([scene(seed, b - a) for seed, (a, b) in enumerate(itertools.pairwise(edges))])


@pytest.mark.slow
def test_planted_cuts_are_found_within_a_frame_and_none_is_invented() -> None:
    detector = ShotDetector(ShotConfig())
    shots = detector.shots(film(), 12.0)
    assert [shot.start_s * FPS for shot in shots[1:]] == pytest.approx(CUTS, abs=1)
    assert len(detector.shots(scene(9, 150), 6.0)) == 1


def test_a_cut_and_a_dissolve_are_looked_at_and_a_still_film_is_not() -> None:
    config = ShotConfig()
    change = frames_of_change(film(), config.quiet_ratio, config.quiet_drift)
    assert all(change[cut - 1] for cut in CUTS)
    blend = np.linspace(0, 1, 25)[:, None, None, None]
    dissolve = np.concatenate(
        [scene(1, 50)[:50], ((1 - blend) * scene(1, 75)[50:] + blend * scene(2, 25)).astype(np.uint8), scene(2, 50)]
    )
    assert frames_of_change(dissolve, config.quiet_ratio, config.quiet_drift)[50:75].any()
    assert not frames_of_change(scene(1, 1).repeat(200, axis=0), config.quiet_ratio, config.quiet_drift).any()


def test_shots_cover_the_film_and_leave_a_transition_out() -> None:
    probability = np.zeros(100)
    probability[[24, 60, 61, 62]] = 0.9
    shots = spans_between(probability, 0.5, 25, 4.0)
    assert shots == [Span(0.0, 1.0), Span(1.0, 61 / 25), Span(63 / 25, 4.0)]


def test_a_film_without_frames_is_one_shot() -> None:
    assert spans_between(np.zeros(0), 0.5, 25, 1.5) == [Span(0.0, 1.5)]
