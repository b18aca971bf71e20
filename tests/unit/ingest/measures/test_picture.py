"""Step `picture` and bits per pixel: every signal responds monotonically to a planted degradation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from uniavgen.ingest.config import LimitConfig
from uniavgen.ingest.io import media
from uniavgen.ingest.io.probe_client import probe_video
from uniavgen.ingest.measures.picture import STILL, PictureCollector, picture_signals, thumbnail
from uniavgen.ingest.measures.probe import bits_per_pixel
from uniavgen.ingest.records import FrameTable, Probe
from uniavgen.orchestration.demo.face import animate
from uniavgen.orchestration.demo.visemes import Phone
from uniavgen.orchestration.output.video_file import write_video

PROBE = Probe(2.0, 256, 256, 16.0, "h264", "", False, bit_rate=100_000.0)


@pytest.fixture(scope="module")
def talk() -> np.ndarray:
    """Two seconds of an animated photograph, uint8 [32, 256, 256, 3] at 16 fps."""
    phones = [Phone(symbol, 0.15 * i, 0.15 * i + 0.15) for i, symbol in enumerate("apaimofabutipama")]
    return np.stack(
        [frame.picture for frame in animate("astronaut", phones, [i / 16 for i in range(32)], size=256)]
    )


def measured(pictures: np.ndarray) -> dict[str, Any]:
    collector = PictureCollector()
    for frame, picture in enumerate(pictures):
        collector.add_frame(frame, picture)
    return picture_signals(collector.result(), 0, len(pictures))


def test_darkening_lowers_luma_until_frames_are_black(talk: np.ndarray) -> None:
    found = [measured((talk * gain).astype(np.uint8)) for gain in (1.0, 0.8, 0.5, 0.2, 0.05)]
    luma = [signals["luma"] for signals in found]
    assert luma == sorted(luma, reverse=True)
    assert luma[2] == pytest.approx(luma[0] / 2, rel=0.05)
    assert [signals["black_ratio"] for signals in found] == [0, 0, 0, 0, 1]


def test_black_ratio_counts_black_frames(talk: np.ndarray) -> None:
    for black in (0, 4, 16, 32):
        video = talk.copy()
        video[:black] = 0
        assert measured(video)["black_ratio"] == black / 32


def test_motion_grows_with_speed(talk: np.ndarray) -> None:
    found = [measured(shifted(talk[0], step))["motion"] for step in range(5)]
    assert found == sorted(found)
    assert found[0] == 0


def shifted(picture: np.ndarray, step: int) -> np.ndarray:
    """16 frames that move by `step` pixels each."""
    return np.stack([np.roll(picture, step * i, axis=1) for i in range(16)])


def encoded(path: Path, pictures: np.ndarray, **encoding: Any) -> tuple[np.ndarray, Probe]:
    """The frames after an encode and decode."""
    limits = LimitConfig()
    write_video(path, pictures, pictures.shape[1:3], None, encoding={"vcodec": "libx264", **encoding})
    probe = probe_video(str(path), limits)
    return np.stack(
        list(media.decode_frames(str(path), probe, 512, 25, path.with_suffix(".tiny"), limits))
    ), probe


@pytest.mark.slow
def test_frozen_ratio_counts_repeated_frames_after_encoding(talk: np.ndarray, tmp_path: Path) -> None:
    def held(length: int) -> np.ndarray:
        """The last `length` + 1 frames are equal."""
        return talk[np.minimum(np.arange(32), 31 - length)]

    def doubled(every: int) -> np.ndarray:
        """Each frame is shown `every` times, as in a video of a lower rate."""
        return talk[np.arange(32) // every * every]

    for crf in (18, 30):
        frozen = [
            measured(encoded(tmp_path / "a.mp4", held(n), crf=crf)[0])["frozen_ratio"] for n in (0, 8, 16, 24)
        ]
        assert frozen == pytest.approx([n / 31 for n in (0, 8, 16, 24)], abs=0.07)
        twice = [
            measured(encoded(tmp_path / "b.mp4", doubled(n), crf=crf)[0])["frozen_ratio"] for n in (1, 2, 4)
        ]
        assert twice == pytest.approx([0, 16 / 31, 24 / 31], abs=0.07)


@pytest.mark.slow
def test_lower_bitrate_lowers_bits_per_pixel(talk: np.ndarray, tmp_path: Path) -> None:
    found = []
    for crf in (15, 23, 31, 39):
        path = tmp_path / f"{crf}.mp4"
        _, probe = encoded(path, talk, crf=crf)
        found.append(bits_per_pixel(probe))
        truth = path.stat().st_size * 8 / (probe.duration_s * 16 * 256 * 256)
        assert found[-1] == pytest.approx(truth, rel=0.35)  # the container is a large part of so small a file
    assert found == sorted(found, reverse=True)  # type: ignore[type-var]


def test_bits_per_pixel_of_unknown_rate_is_none() -> None:
    assert bits_per_pixel(PROBE) == pytest.approx(100_000 / (256 * 256 * 16))
    assert bits_per_pixel(Probe(2.0, 256, 256, 0.0, "h264", "", False, bit_rate=1e5)) is None
    assert bits_per_pixel(Probe(2.0, 256, 256, 16.0, "h264", "", False)) is None


def test_change_into_first_frame_of_clip_does_not_count() -> None:
    frames = FrameTable(np.full(8, 90, np.float32), np.array([255, 1, 1, 200, 0, 1, 1, 1], np.float32))
    found = picture_signals(frames, 3, 8)
    assert found["motion"] == pytest.approx(0.75)
    assert found["frozen_ratio"] == 0.25
    empty = picture_signals(frames, 8, 8)
    assert set(empty.values()) == {None}


def test_grain_is_not_frozen() -> None:
    rng = np.random.default_rng(0)
    grainy = (120 + rng.normal(0, 8, (8, 288, 512, 1))).clip(0, 255).astype(np.uint8).repeat(3, axis=3)
    collector = PictureCollector()
    for frame, picture in enumerate(grainy):
        collector.add_frame(frame, picture)
    assert (collector.result().change[1:] > STILL).all()


def test_thumbnail_keeps_mean_brightness() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (360, 640, 1), np.uint8).repeat(3, axis=2)
    assert thumbnail(picture).shape == (36, 64)
    assert thumbnail(picture).mean() == pytest.approx(picture.mean(), abs=1)
