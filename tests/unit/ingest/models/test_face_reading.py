"""Face landmarks on a real photograph, still and animated: position, count, pose, and false faces."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from paths import MEDIA

from uniavgen.ingest.config import FaceConfig, LimitConfig
from uniavgen.ingest.io import media
from uniavgen.ingest.io.probe_client import probe_video
from uniavgen.ingest.models.face_reader import (
    OVAL,
    Detection,
    Face,
    FaceCollector,
    FaceReader,
    FaceTracker,
    confirmed_score,
    find_meshes,
    head_angle_deg,
    head_pose,
    iou,
)
from uniavgen.ingest.records import FacesSeen
from uniavgen.orchestration.demo.face import FaceFrame, animate, pattern
from uniavgen.orchestration.demo.portrait import portrait, warp
from uniavgen.orchestration.demo.visemes import Phone
from uniavgen.shards.weights import resolve

PHONES = [Phone(symbol, 0.15 * i, 0.15 * i + 0.15) for i, symbol in enumerate("apaimofabutipamaobi")]


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


@pytest.fixture(scope="module")
def talking() -> list[FaceFrame]:
    """Two seconds of two variants of the animated photograph, with the true oval and lip distance of every
    frame.
    """
    times = [i / 16 for i in range(32)]
    return [frame for look in ("astronaut", "dark_close") for frame in animate(look, PHONES, times, seed=3)]


def seen_by(reader: FaceReader, pictures: list[np.ndarray], config: FaceConfig) -> FacesSeen:
    meter = FaceCollector(reader, config, lambda at_s: True)
    for frame, picture in enumerate(pictures):
        meter.add_frame(frame, picture)
    return meter.result()


def oval_iou(found: np.ndarray, truth: np.ndarray, side: int = 400) -> float:
    """Intersection over union of two filled ovals [36, 2]."""
    import cv2

    outlines = (np.round(oval * side).astype(np.int32) for oval in (found, truth))
    one, other = (cv2.fillPoly(np.zeros((side, side), np.uint8), [outline], 1) > 0 for outline in outlines)
    return float((one & other).sum() / (one | other).sum())


def turned(picture: np.ndarray, degrees: float, about: tuple[float, float] = (225, 115)) -> np.ndarray:
    """The photograph rotated counter-clockwise about the face."""
    import cv2

    turn = cv2.getRotationMatrix2D(about, degrees, 1.0)
    return cv2.warpAffine(picture, turn, picture.shape[1::-1], borderMode=cv2.BORDER_REFLECT)


def turned_head(reader: FaceReader, yaw: float = 0.0, pitch: float = 0.0) -> list[Face]:
    """Faces in the photograph after its mesh was rotated in depth by these degrees."""
    rest = portrait("astronaut_close", 384)
    neck = rest.mesh[152]
    (x, y), z = (rest.mesh - neck).T, rest.depth / 0.7  # the demo flattens its depth to 0.7
    about_y, about_x = np.radians([yaw, pitch])
    x, z = x * np.cos(about_y) + z * np.sin(about_y), z * np.cos(about_y) - x * np.sin(about_y)
    y = y * np.cos(about_x) - z * np.sin(about_x)
    points = rest.mesh + rest.grip[:, None] * (np.stack([x, y], axis=1) + neck - rest.mesh)
    return reader.read(warp(rest.texture, rest.mesh, points, rest.triangles))


@pytest.mark.slow
def test_oval_matches_the_face_on_nearly_every_frame(reader: FaceReader, talking: list[FaceFrame]) -> None:
    seen = seen_by(reader, [frame.picture for frame in talking], FaceConfig())
    assert seen.faces.frame.tolist() == list(range(len(talking)))
    assert not seen.denied.any()
    found = np.array(
        [oval_iou(oval, frame.oval) for oval, frame in zip(seen.faces.oval, talking, strict=True)]
    )
    assert (found >= 0.9).mean() >= 0.95


@pytest.mark.slow
def test_lip_gap_follows_the_lips(reader: FaceReader, talking: list[FaceFrame]) -> None:
    gap = seen_by(reader, [frame.picture for frame in talking], FaceConfig()).faces.lip_gap
    truth = np.array([frame.opening for frame in talking])
    for half in (slice(0, 32), slice(32, 64)):
        assert np.corrcoef(gap[half], truth[half])[0, 1] > 0.9


@pytest.mark.slow
def test_confirming_every_fourth_frame_gives_the_same_rows(talking: list[FaceFrame]) -> None:
    class Counting(FaceReader):
        asked = 0

        def detections(self, picture: np.ndarray) -> list[Detection]:
            self.asked += 1
            return super().detections(picture)

    pictures = [frame.picture for frame in talking[:32]]
    reader = Counting(FaceConfig())
    found = []
    for every in (1, 8):
        reader.asked = 0
        found.append(
            (seen_by(reader, pictures, FaceConfig(confirm_every=every, tile_every=0)).faces, reader.asked)
        )
    reader.close()
    assert [asked for _, asked in found] == [32, 4]
    np.testing.assert_array_equal(found[0][0].oval, found[1][0].oval)


@pytest.mark.slow
def test_repeated_frame_is_not_processed_again(
    reader: FaceReader, photograph: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, landmarks = [], reader.landmarks

    def counted(picture: np.ndarray) -> list[Face]:
        calls.append(picture)
        return landmarks(picture)

    monkeypatch.setattr(reader, "landmarks", counted)
    other = np.ascontiguousarray(photograph[:, ::-1])
    seen = seen_by(reader, [photograph, photograph.copy(), other, other], FaceConfig(tile_every=0))
    assert len(calls) == 2
    assert seen.faces.frame.tolist() == [0, 1, 2, 3]


@pytest.mark.slow
def test_face_box_matches_the_photograph(reader: FaceReader, photograph: np.ndarray) -> None:
    (face,) = reader.read(photograph)
    assert iou(face.box, (170 / 512, 45 / 512, 275 / 512, 190 / 512)) > 0.6
    assert face.oval.shape == (len(OVAL), 2)
    assert face.score > 0.5
    assert face.lip_gap >= 0


@pytest.mark.slow
def test_roll_is_measured_and_mirroring_inverts_yaw_and_roll(
    reader: FaceReader, photograph: np.ndarray
) -> None:
    (rest,) = reader.read(photograph)
    for degrees in (-40, -20, 20, 40):
        (face,) = reader.read(turned(photograph, degrees))
        assert face.roll - rest.roll == pytest.approx(degrees, abs=4)
    (mirrored,) = reader.read(np.ascontiguousarray(photograph[:, ::-1]))
    assert (mirrored.yaw, mirrored.roll) == pytest.approx((-rest.yaw, -rest.roll), abs=3)
    assert mirrored.pitch == pytest.approx(rest.pitch, abs=3)


@pytest.mark.slow
def test_yaw_and_pitch_follow_planted_rotations(reader: FaceReader) -> None:
    angles = np.array([-20, -10, 0, 10, 20])
    yaw = np.array([turned_head(reader, yaw=angle)[0].yaw for angle in angles])
    pitch = np.array([turned_head(reader, pitch=angle)[0].pitch for angle in angles])
    for found in (yaw, pitch):
        assert (np.diff(found) > 4).all()
        assert np.polyfit(angles, found, 1)[0] == pytest.approx(1, abs=0.35)


def test_head_pose_inverts_its_rotation_matrix() -> None:
    yaw, pitch, roll = np.radians([25.0, -10.0, 7.0])
    about_y = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    down = -pitch  # a right-handed turn about x lowers the face
    about_x = np.array([[1, 0, 0], [0, np.cos(down), -np.sin(down)], [0, np.sin(down), np.cos(down)]])
    about_z = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    pose = np.eye(4)
    pose[:3, :3] = 1.3 * about_y @ about_x @ about_z
    assert head_pose(pose) == pytest.approx((25, -10, 7))


@pytest.mark.slow
def test_two_faces_side_by_side_are_found(reader: FaceReader, photograph: np.ndarray) -> None:
    pair = np.concatenate([photograph[:300, 60:400], photograph[:300, 60:400][:, ::-1]], axis=1)
    assert len(reader.read(pair)) == 2


@pytest.mark.slow
def test_small_faces_are_counted_in_tiles(reader: FaceReader, photograph: np.ndarray) -> None:
    import cv2

    small = cv2.resize(photograph[0:300, 80:380], (190, 190), interpolation=cv2.INTER_AREA)
    wall = np.full((512, 768, 3), 90, np.uint8)
    for y, x in ((20, 20), (20, 560), (300, 20), (300, 560)):
        wall[y : y + 190, x : x + 190] = small
    assert reader.count(wall, reader.read(wall)) == 4


@pytest.mark.slow
def test_noise_and_badges_are_not_faces(reader: FaceReader, photograph: np.ndarray) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (384, 384, 3), np.uint8)
    squares = (
        np.kron(np.indices((8, 8)).sum(axis=0) % 2, np.ones((48, 48), int))
        .astype(np.uint8)[..., None]
        .repeat(3, 2)
        * 255
    )
    suit = np.ascontiguousarray(photograph[260:, 60:400])
    for picture in (noise, np.full((384, 384, 3), 128, np.uint8), squares, suit, *pattern([0.0, 1.0])):
        assert reader.read(picture) == []
        assert reader.count(picture, []) == 0


@pytest.mark.slow
def test_meshes_are_those_of_the_whole_bundle(reader: FaceReader, photograph: np.ndarray) -> None:
    import mediapipe
    from mediapipe.tasks.python import BaseOptions, vision

    bundle = resolve("face-landmarker") / "face_landmarker.task"
    options = vision.FaceLandmarkerOptions(
        base_options=BaseOptions(model_asset_path=str(bundle)),
        num_faces=4,
        output_facial_transformation_matrixes=True,
    )
    pair = np.concatenate([photograph[:300, 60:400], photograph[:300, 60:400][:, ::-1]], axis=1)
    pictures = [photograph, pair, np.zeros_like(photograph)]
    counts = []
    with vision.FaceLandmarker.create_from_options(options) as whole:
        for picture in pictures:
            image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=picture)
            expected, found = whole.detect(image), find_meshes(reader._landmarker, image)
            counts.append(len(found))
            for points, (mesh, _) in zip(expected.face_landmarks, found, strict=True):
                assert mesh.dtype == np.float32
                np.testing.assert_array_equal(mesh, [(point.x, point.y) for point in points])
            for matrix, (_, pose) in zip(expected.facial_transformation_matrixes, found, strict=True):
                np.testing.assert_array_equal(pose, matrix)
    assert counts == [1, 2, 0]


@pytest.mark.slow
def test_blur_lowers_sharpness(reader: FaceReader, photograph: np.ndarray) -> None:
    import cv2

    found = [
        reader.read(cv2.GaussianBlur(photograph, (0, 0), blur))[0].sharpness
        for blur in (0.5, 1.0, 1.5, 2.0, 3.0)
    ]
    assert found == sorted(found, reverse=True)


@pytest.mark.slow
def test_landmarks_without_matching_detection_are_denied(reader: FaceReader, photograph: np.ndarray) -> None:
    """Landmarks of the photograph, compared with images in which the face is elsewhere or absent."""
    (face,) = reader.landmarks(photograph)
    config = FaceConfig()
    assert confirmed_score(face, reader.detections(photograph), 1.0, config) > 0.5
    for other in (
        np.roll(photograph, 80, axis=1),
        np.roll(photograph, 100, axis=0),
        np.full_like(photograph, 90),
    ):
        assert confirmed_score(face, reader.detections(other), 1.0, config) == 0


@pytest.mark.slow
def test_face_that_turns_away_is_tracked_up_to_the_limit(reader: FaceReader) -> None:
    found = [turned_head(reader, degrees) for degrees in (0, 30, 50, 70, 85)]
    assert [len(faces) for faces in found] == [1, 1, 1, 0, 0]
    yaws = [faces[0].yaw for faces in found[:3]]
    assert yaws == sorted(yaws)


@pytest.mark.slow
@pytest.mark.skipif(not MEDIA.is_dir(), reason=f"the development videos are not here ({MEDIA})")
def test_wrong_landmarks_on_a_real_profile_are_denied(reader: FaceReader) -> None:
    """After 20 s a woman is in profile: the landmarks collapse into her cheek while the detector still finds
    a face.
    """
    import cv2

    path, limits, config = str(MEDIA / "multi_shot_no_audio.mp4"), LimitConfig(), FaceConfig()
    pictures = media.decode_frames(path, probe_video(path, limits), 1024, 25, None, limits)
    wrong = []
    for picture in itertools.islice(pictures, 322, 334):
        for scale in (0.5, 0.75):
            small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            crumpled = [face for face in reader.landmarks(small) if head_angle_deg(face) > 75]
            wrong += crumpled
            assert not any(iou(face.box, lock.box) > 0.5 for lock in crumpled for face in reader.read(small))
            if crumpled:
                seen = seen_by(reader, [small], config)
                assert (len(seen.faces.frame), seen.denied.tolist()) == (0, [1])
    assert wrong


POINTS = np.array([[0.3, 0.3], [0.7, 0.3], [0.5, 0.5], [0.5, 0.7]])


def made_face(x: float, yaw: float = 0.0) -> Face:
    """A face of 0.2 by 0.3 at (x, 0.2)."""
    box = (x, 0.2, x + 0.2, 0.5)
    return Face(box, np.zeros((len(OVAL), 2)), 0.0, 0.1, yaw, 0.0, 0.0, 1.0, POINTS * (0.2, 0.3) + (x, 0.2))


def agreeing(*faces: Face) -> Callable[[], list[Detection]]:
    """A detector that finds these faces."""
    return lambda: [Detection(face.box, 0.9, face.points) for face in faces]


def test_track_survives_a_gap_and_another_face_gets_its_own() -> None:
    tracker = FaceTracker(FaceConfig(track_gap=2))
    for frame, places in enumerate([[0.1], [0.12, 0.7], [], [0.71, 0.14], [], [], [], [0.14]]):
        faces = [made_face(x) for x in places]
        tracker.add(frame, faces, agreeing(*faces))
    table = tracker.table()
    assert table.frame.tolist() == [0, 1, 1, 3, 3, 7]
    assert table.track.tolist() == [0, 0, 1, 1, 0, 2]
    assert set(table.score.tolist()) == {np.float32(0.9)}


def test_denied_face_has_no_rows_while_it_is_denied() -> None:
    tracker = FaceTracker(FaceConfig(confirm_every=2))
    face = made_face(0.4)
    told = [False, False, True, None, True, None, False, True]  # None: not asked
    denied = []
    for frame, agrees in enumerate(told):

        def answer(agrees: bool | None = agrees) -> list[Detection]:
            assert agrees is not None
            return agreeing(face)() if agrees else []

        denied.append(tracker.add(frame, [face], answer)[1])
    assert tracker.table().frame.tolist() == [2, 3, 4, 5, 7]
    assert denied == [1, 1, 0, 0, 0, 0, 1, 0]


def test_face_beyond_the_angle_limit_is_denied_between_confirmations() -> None:
    tracker = FaceTracker(FaceConfig(confirm_every=8, turn_limit_deg=70))
    for frame, yaw in enumerate([10.0, 60.0, 75.0, 50.0]):
        tracker.add(frame, [made_face(0.4, yaw)], agreeing(made_face(0.4)))
    assert tracker.table().frame.tolist() == [0, 1, 3]


def test_detection_with_other_key_points_confirms_nothing() -> None:
    face, config = made_face(0.4), FaceConfig()
    upside_down = Detection(face.box, 0.9, POINTS[[1, 0, 3, 2]] * (0.2, -0.3) + (0.4, 0.5))
    assert confirmed_score(face, [Detection(face.box, 0.9, face.points)], 1.0, config) == 0.9
    assert confirmed_score(face, [upside_down], 1.0, config) == 0
