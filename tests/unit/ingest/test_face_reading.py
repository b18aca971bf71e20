"""Faces on a real photograph: where they are, how many, and what is none."""

from collections.abc import Iterator

import numpy as np
import pytest

from ingest.config import FaceConfig
from ingest.faces import OVAL, Face, FaceReader, FaceTracker, overlap
from shards.weights import resolve

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    """The astronaut, uint8 [512, 512, 3]; her face is near (225, 115), some 100 by 130 pixels."""
    import cv2

    picture = cv2.imread(str(resolve("astronaut") / "astronaut.png"))
    assert picture is not None
    return np.ascontiguousarray(picture[:, :, ::-1])


@pytest.fixture(scope="module")
def reader() -> Iterator[FaceReader]:
    reader = FaceReader(FaceConfig())
    yield reader
    reader.close()


def test_the_face_is_found_where_it_is(reader: FaceReader, photograph: np.ndarray) -> None:
    (face,) = reader.read(photograph)
    assert overlap(face.box, (170 / 512, 45 / 512, 275 / 512, 190 / 512)) > 0.6
    assert face.oval.shape == (len(OVAL), 2)
    assert face.score > 0.5
    assert abs(face.yaw) < 40
    assert face.lip_gap >= 0


def test_two_faces_stand_side_by_side(reader: FaceReader, photograph: np.ndarray) -> None:
    pair = np.concatenate([photograph[:300, 60:400], photograph[:300, 60:400][:, ::-1]], axis=1)
    assert len(reader.read(pair)) == 2


def test_small_faces_are_counted_in_tiles(reader: FaceReader, photograph: np.ndarray) -> None:
    import cv2

    small = cv2.resize(photograph[0:300, 80:380], (190, 190), interpolation=cv2.INTER_AREA)
    wall = np.full((512, 768, 3), 90, np.uint8)
    for y, x in ((20, 20), (20, 560), (300, 20), (300, 560)):
        wall[y : y + 190, x : x + 190] = small
    assert reader.count(wall, reader.read(wall)) == 4


def test_noise_and_grey_are_no_faces(reader: FaceReader) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (384, 384, 3), np.uint8)
    for picture in (noise, np.full((384, 384, 3), 128, np.uint8)):
        assert reader.read(picture) == []
        assert reader.count(picture, []) == 0


def test_blur_lowers_the_sharpness(reader: FaceReader, photograph: np.ndarray) -> None:
    import cv2

    found = [reader.read(cv2.GaussianBlur(photograph, (0, 0), blur))[0].sharpness for blur in (0.5, 1.5, 3.0)]
    assert found == sorted(found, reverse=True)


def test_a_face_keeps_its_track_through_a_gap_and_a_stranger_gets_his_own() -> None:
    def face(x: float) -> Face:
        return Face((x, 0.2, x + 0.2, 0.5), np.zeros((len(OVAL), 2)), 0.9, 0.1, 0.0, 1.0)

    tracker = FaceTracker(FaceConfig(track_gap=2))
    for frame, faces in enumerate(
        [[face(0.1)], [face(0.12), face(0.7)], [], [face(0.71), face(0.14)], [], [], [], [face(0.14)]]
    ):
        tracker.add(frame, faces)
    table = tracker.table()
    assert table.frame.tolist() == [0, 1, 1, 3, 3, 7]
    assert table.track.tolist() == [0, 0, 1, 1, 0, 2]
