"""Shot detection: planted cuts, dissolves, flashes, lighting and camera motion."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uniavgen.ingest.config import ShotConfig
from uniavgen.ingest.models.shot_detector import (
    CHUNK,
    FLASH,
    ShotDetector,
    candidate_frames,
    drop_flashes,
    frame_differences,
    shots_between,
    widened_runs,
)
from uniavgen.ingest.records import Span
from uniavgen.orchestration.demo.face import animate
from uniavgen.orchestration.demo.visemes import Phone

FPS = 25
LOOKS = ("astronaut", "mirror", "dark", "warm")
TRANSNET, SCENEDETECT = ShotConfig(), ShotConfig(detector="scenedetect")

Crop = tuple[float, float, float, bool]
"""Left and top of a 16:9 window in the portrait, its width, and whether it is mirrored; in pixels of 128."""


@pytest.fixture(scope="module")
def talking() -> dict[str, np.ndarray]:
    """Four variants of the animated photograph, uint8 [60, 128, 128, 3] at 25 fps."""
    import cv2

    phones = [Phone(symbol, 0.15 * i, 0.15 * i + 0.15) for i, symbol in enumerate("apaimofabutipama")]
    times = [i / FPS for i in range(60)]
    return {
        look: np.stack(
            [
                cv2.resize(f.picture, (128, 128), interpolation=cv2.INTER_AREA)
                for f in animate(look, phones, times, size=256)
            ]
        )
        for look in LOOKS
    }


@pytest.fixture(scope="module")
def transnet() -> ShotDetector:
    return ShotDetector(TRANSNET)


def window(picture: np.ndarray, crop: Crop) -> np.ndarray:
    """The detector's frame [27, 48, 3] of a crop."""
    import cv2

    left, top, width, mirrored = crop
    scale = width / 144
    look = np.array([[scale, 0, left], [0, scale, top]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    wide = cv2.warpAffine(picture, look, (144, 81), flags=flags, borderMode=cv2.BORDER_REFLECT)
    small = cv2.resize(wide, (48, 27), interpolation=cv2.INTER_AREA)
    return small[:, ::-1] if mirrored else small


def segment(frames: np.ndarray, crop: Crop, count: int, start: int = 0) -> np.ndarray:
    """`count` frames of one shot; the video is played forwards and backwards."""
    last = len(frames) - 1
    return np.stack([window(frames[last - abs((start + i) % (2 * last) - last)], crop) for i in range(count)])


def planted(talking: dict[str, np.ndarray], seed: int, cuts: int = 5) -> tuple[np.ndarray, list[int]]:
    """A video with `cuts` hard cuts (another person, or the same one mirrored or closer) and its shots' first
    frames.
    """
    rng = np.random.default_rng(seed)
    parts, at, before = [], [], ("", 0.0, False)
    while len(parts) <= cuts:
        look, width, mirrored = str(rng.choice(LOOKS)), rng.uniform(80, 126), bool(rng.random() < 0.3)
        if (look, mirrored) == (before[0], before[2]) and abs(np.log(width / before[1])) < 0.15:
            continue
        before = look, width, mirrored
        crop = (rng.uniform(0, 127 - width), rng.uniform(0, (127 - width * 9 / 16) * 0.7), width, mirrored)
        parts.append(segment(talking[look], crop, int(rng.integers(15, 60)), int(rng.integers(60))))
        at.append(len(parts[-1]))
    return np.concatenate(parts), np.cumsum(at)[:-1].tolist()


def recall_and_precision(
    detector: ShotDetector, videos: list[tuple[np.ndarray, list[int]]]
) -> tuple[float, float]:
    hits = told = true = 0
    for video, cuts in videos:
        found = [round(shot.start_s * FPS) for shot in detector.shots(video, len(video) / FPS)[1:]]
        hits += sum(any(abs(cut - at) <= 1 for at in found) for cut in cuts)
        told, true = told + len(found), true + len(cuts)
    return hits / true, hits / told


@pytest.mark.slow
def test_transnet_finds_planted_cuts_within_a_frame(
    transnet: ShotDetector, talking: dict[str, np.ndarray], tmp_path: Path
) -> None:
    videos = []
    for seed in range(2):
        video, cuts = planted(talking, seed)
        np.save(tmp_path / f"{seed}.npy", video)
        videos.append((np.load(tmp_path / f"{seed}.npy", mmap_mode="r"), cuts))
    recall, precision = recall_and_precision(transnet, videos)
    assert recall >= 0.95
    assert precision >= 0.95


@pytest.mark.slow
def test_scenedetect_finds_planted_cuts_within_a_frame(talking: dict[str, np.ndarray]) -> None:
    recall, precision = recall_and_precision(
        ShotDetector(SCENEDETECT), [planted(talking, seed) for seed in range(20)]
    )
    assert recall >= 0.95
    assert precision >= 0.95


def single_shots(talking: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Four videos of 30 s without a cut: still camera, moving camera, flashes, switched lamps."""
    rng = np.random.default_rng(0)
    plain = segment(talking["mirror"], (10, 10, 110, False), 750)
    sway = [
        (13 + 12 * np.sin(i / 24), 18 + 12 * np.sin(i / 33), 90 + 12 * np.sin(i / 50), False)
        for i in range(750)
    ]
    moving = np.concatenate([segment(talking["dark"], crop, 1, i) for i, crop in enumerate(sway)])
    flashes, lamps = plain.astype(np.float32), plain.astype(np.float32)
    for at, length in ((90, 1), (300, 2), (520, 4)):
        flashes[at : at + length] = flashes[at : at + length] * 0.3 + 190
    for first, last in itertools.pairwise([0, 150, 400, 640, 750]):
        lamps[first:last] = lamps[first:last] * rng.uniform(0.5, 1.2) + rng.uniform(-10, 20)
    flashes, lamps = (video.clip(0, 255).astype(np.uint8) for video in (flashes, lamps))
    return {"still": plain, "moving": moving, "flashes": flashes, "lamps": lamps}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["transnetv2", "scenedetect"])
def test_single_shot_has_no_cut(name: str, transnet: ShotDetector, talking: dict[str, np.ndarray]) -> None:
    detector = transnet if name == "transnetv2" else ShotDetector(SCENEDETECT)
    for kind, video in single_shots(talking).items():
        assert detector.shots(video, 30.0) == [Span(0.0, 30.0)], kind


@pytest.mark.slow
def test_cut_during_a_flash_is_found(talking: dict[str, np.ndarray]) -> None:
    video = np.concatenate(
        [
            segment(talking["mirror"], (10, 10, 110, False), 40),
            segment(talking["dark"], (5, 5, 100, False), 40),
        ]
    )
    video[38:40] = (video[38:40] * 0.3 + 190).astype(np.uint8)
    assert drop_flashes(video, [(37, 38), (39, 40)])
    assert drop_flashes(video[:38], []) == []


@pytest.mark.slow
def test_candidate_frames_cover_cuts_and_dissolves_only(
    talking: dict[str, np.ndarray],
) -> None:
    video, cuts = planted(talking, 1)
    change = candidate_frames(video, TRANSNET)
    assert all(change[cut - 1] for cut in cuts)
    one, other = (
        segment(talking["mirror"], (10, 10, 110, False), 100),
        segment(talking["dark"], (5, 5, 100, False), 100),
    )
    blend = np.linspace(0, 1, 25)[:, None, None, None]
    mixed = ((1 - blend) * one[40:65] + blend * other[:25]).astype(np.uint8)
    assert candidate_frames(np.concatenate([one[:40], mixed, other[25:]]), TRANSNET)[45:60].all()
    assert not candidate_frames(one, TRANSNET).any()


def test_frame_differences_of_mapped_file_equal_naive_ones(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    video = np.lib.format.open_memmap(tmp_path / "video.npy", "w+", np.uint8, (CHUNK + 30, 3, 4, 3))
    video[:] = rng.integers(0, 256, video.shape, np.uint8)
    for lag in (1, 12):
        naive = [np.abs(video[i + lag].astype(int) - video[i]).mean() for i in range(len(video) - lag)]
        np.testing.assert_allclose(frame_differences(video, lag), naive, rtol=1e-5)
    assert len(frame_differences(video[:5], 12)) == 0


@given(st.lists(st.booleans(), max_size=80), st.integers(0, 5), st.integers(1, 30))
def test_widened_runs_cover_wanted_frames_once_in_order(
    wanted: list[bool], margin: int, longest: int
) -> None:
    pieces = list(widened_runs(np.array(wanted, bool), margin, longest))
    covered = [frame for first, last in pieces for frame in range(first, last)]
    near = {
        i
        for at, want in enumerate(wanted)
        if want
        for i in range(at - margin, at + margin + 1)
        if 0 <= i < len(wanted)
    }
    assert covered == sorted(set(covered))
    assert near <= set(covered)
    assert all(0 < last - first <= longest for first, last in pieces)


def test_flash_longer_than_the_limit_is_two_cuts(talking: dict[str, np.ndarray]) -> None:
    one, other = (
        segment(talking["mirror"], (10, 10, 110, False), 60),
        segment(talking["dark"], (5, 5, 100, False), 60),
    )
    for length, cuts in ((FLASH, 0), (FLASH + 6, 2)):
        video = one.copy()
        video[20 : 20 + length] = other[20 : 20 + length]
        assert len(drop_flashes(video, [(19, 20), (19 + length, 20 + length)])) == cuts


def test_shots_cover_the_video_without_transitions() -> None:
    shots = shots_between([(24, 25), (60, 63)], 25, 4.0)
    assert shots == [Span(0.0, 1.0), Span(1.0, 61 / 25), Span(63 / 25, 4.0)]


def test_video_without_frames_is_one_shot(transnet: ShotDetector) -> None:
    assert shots_between([], 25, 1.5) == [Span(0.0, 1.5)]
    assert transnet.shots(np.zeros((0, 27, 48, 3), np.uint8), 2.0) == [Span(0.0, 2.0)]
