"""Share of the frame under burned-in text: lines, sizes, no text, sampling in time."""

import numpy as np
import pytest

from uniavgen.ingest.config import TextConfig
from uniavgen.ingest.models.text_detector import TextCollector, TextDetector, text_boxes
from uniavgen.shards.weights import resolve

LINES = ("the quick brown fox", "jumps over the lazy dog", "NEWS AT TEN TONIGHT", "live from the harbour")


@pytest.fixture(scope="module")
def reader() -> TextDetector:
    return TextDetector(TextConfig())


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    """The astronaut's head without letters, uint8 [288, 512, 3]."""
    import cv2

    picture = cv2.imread(str(resolve("astronaut") / "astronaut.png"))
    assert picture is not None
    return cv2.resize(
        np.ascontiguousarray(picture[5:185, 115:435, ::-1]), (512, 288), interpolation=cv2.INTER_CUBIC
    )


def captioned(picture: np.ndarray, lines: int, scale: float = 0.8) -> tuple[np.ndarray, float]:
    """The frame with white, black-edged lines from the bottom up, and the share of it under their boxes."""
    import cv2

    picture, area = picture.copy(), 0
    for number, line in enumerate(LINES[:lines]):
        (width, height), below = cv2.getTextSize(line, cv2.FONT_HERSHEY_DUPLEX, scale, 2)
        at = (30, picture.shape[0] - 20 - round(number * 50 * scale))
        cv2.putText(picture, line, at, cv2.FONT_HERSHEY_DUPLEX, scale, (0, 0, 0), 6, cv2.LINE_AA)
        cv2.putText(picture, line, at, cv2.FONT_HERSHEY_DUPLEX, scale, (255, 255, 255), 2, cv2.LINE_AA)
        area += width * (height + below)
    return picture, area / picture[..., 0].size


@pytest.mark.slow
def test_every_caption_line_adds_its_area(reader: TextDetector, face: np.ndarray) -> None:
    made = [captioned(face, lines) for lines in range(len(LINES) + 1)]
    found = [reader.covered(picture) for picture, _ in made]
    assert found[0] == 0
    assert (np.diff(found) > 0.01).all()
    for share, (_, truth) in zip(found[1:], made[1:], strict=True):
        assert share == pytest.approx(truth, rel=0.4)


@pytest.mark.slow
def test_larger_letters_cover_more(reader: TextDetector, face: np.ndarray) -> None:
    found = [reader.covered(captioned(face, 1, scale)[0]) for scale in (0.5, 0.7, 0.9, 1.2)]
    assert found[0] > 0
    assert found == sorted(found)


@pytest.mark.slow
def test_frame_without_letters_has_no_text(reader: TextDetector) -> None:
    soft = np.random.default_rng(0).integers(0, 255, (9, 16, 3), np.uint8).repeat(32, 0).repeat(32, 1)
    for picture in (
        np.full((288, 512, 3), 30, np.uint8),
        np.linspace(0, 255, 512).astype(np.uint8)[None, :, None] * np.ones((288, 1, 3), np.uint8),
        soft,
    ):
        assert reader.covered(picture) == 0


@pytest.mark.slow
def test_frame_of_any_size_is_measured(reader: TextDetector) -> None:
    for height, width in ((20, 30), (512, 288), (333, 501)):
        assert reader.probability(np.zeros((height, width, 3), np.uint8)).ndim == 2


@pytest.mark.slow
def test_text_is_measured_every_two_seconds_where_wanted(reader: TextDetector, face: np.ndarray) -> None:
    meter = TextCollector(reader, TextConfig(every_s=1.0), lambda at_s: at_s < 3)
    with_text, _ = captioned(face, 2)
    for frame in range(16 * 5):
        meter.add_frame(frame, with_text if frame < 32 else face)
    seen = meter.result()
    assert np.flatnonzero(np.isfinite(seen.ratio)).tolist() == [0, 16, 32]
    expected = [reader.covered(with_text)] * 2 + [0]
    assert seen.ratio[[0, 16, 32]] == pytest.approx(expected)


def test_boxes_grow_by_area_over_perimeter_and_weak_or_thin_ones_are_dropped() -> None:
    probability = np.zeros((64, 128), np.float32)
    probability[20:31, 30:91] = 0.9  # 60 by 10 between the middles of its outermost pixels
    probability[50:52, 10:100] = 0.9  # thin
    probability[5:15, 100:120] = 0.4  # weak
    (box,) = text_boxes(probability, TextConfig(box_growth=1.6))
    size = np.ptp(box, axis=0)
    assert size == pytest.approx(np.array([60, 10]) + 2 * 1.6 * 60 * 10 / (2 * 70), abs=0.01)
    assert box.mean(axis=0) == pytest.approx([60, 25])
