"""Crops that follow the face, against faces drawn by a known motion."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uniavgen.shards.errors import UserError
from uniavgen.shards.sample import FaceTrack
from uniavgen.train.data.face_crop import (
    CROP_SIZE,
    Placement,
    crop_ovals,
    cut_crops,
    mouth_boxes,
    paste_back,
    place_crops,
)

SOURCE, TARGET = (240, 320), (64, 64)
ANGLES = np.linspace(0, 2 * np.pi, 36, endpoint=False)
UPRIGHT = np.column_stack([np.sin(ANGLES) * 40, -np.cos(ANGLES) * 55])
"""An oval of 80 x 110 px, clockwise from the forehead."""


def move(points: np.ndarray, centre, roll: float, scale: float) -> np.ndarray:
    """Points turned by `roll` (radians, clockwise on the screen), scaled and moved to `centre`."""
    turn = np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]])
    return scale * points @ turn.T + centre


def track_of(motions: list[tuple], jaw: list[float] | None = None) -> FaceTrack:
    """A track whose oval follows (centre, roll, scale) of each frame; `jaw` lowers its lower points."""
    ovals = []
    for index, motion in enumerate(motions):
        oval = UPRIGHT.copy()
        if jaw:
            oval[oval[:, 1] > 15, 1] += jaw[index]
        ovals.append(move(oval, *motion) / (SOURCE[1], SOURCE[0]))
    oval = np.array(ovals, np.float32)
    box = np.concatenate([oval.min(1), oval.max(1)], axis=1)
    return FaceTrack(oval, box, np.ones(len(oval), np.float32))


def to_crop(placement: Placement, frame: int, point: np.ndarray) -> np.ndarray:
    """Crop pixel that shows a point of the source, in pixel-centre coordinates."""
    matrix = placement.matrix[frame]
    return np.linalg.solve(matrix[:, :2], point - matrix[:, 2])


@given(st.floats(60, 260), st.floats(60, 180), st.floats(-0.6, 0.6), st.floats(0.5, 1.6))
@settings(max_examples=40, deadline=None)
def test_stabilised_crop_shows_a_still_face_upright_in_the_middle(x, y, roll, scale) -> None:
    placement = place_crops(track_of([((x, y), roll, scale)] * 5), SOURCE, TARGET, "stabilised")
    # in pixel-centre coordinates, half a pixel before those of edges
    centre = to_crop(placement, 2, np.array([x, y]) - 0.5)
    np.testing.assert_allclose(centre, [31.5, 31.5], atol=0.3)
    crown = to_crop(placement, 2, move(UPRIGHT[0], (x, y), roll, scale) - 0.5)
    np.testing.assert_allclose(crown, [31.5, 31.5 - 32 / CROP_SIZE], atol=0.3)


def test_stabilised_crop_removes_slow_head_motion_and_tracked_keeps_roll_and_scale() -> None:
    time = np.linspace(0, 2 * np.pi, 48)
    motions = [
        ((160 + 30 * np.sin(t), 120 + 10 * np.cos(t)), 0.2 * np.sin(t), 1 + 0.15 * np.cos(t)) for t in time
    ]
    face = track_of(motions)
    ovals = {
        crop: crop_ovals(face, place_crops(face, SOURCE, TARGET, crop), SOURCE)
        for crop in ("stabilised", "tracked")
    }
    motion = {crop: oval.std(axis=0).max() * TARGET[0] for crop, oval in ovals.items()}
    assert motion["stabilised"] < 1.0
    assert motion["tracked"] > 3.0
    middle = ovals["tracked"].mean(axis=1)
    assert np.abs(middle - 0.5).max() * TARGET[0] < 3


def test_a_moving_jaw_does_not_move_the_crop() -> None:
    motions = [((160, 120), 0.0, 1.0)] * 24
    chewing = [12.0 * (index % 4 > 1) for index in range(24)]
    still, moving = track_of(motions), track_of(motions, chewing)
    placements = [place_crops(face, SOURCE, TARGET, "stabilised") for face in (still, moving)]
    assert np.ptp(placements[1].matrix, axis=0).max() < 1e-5
    # the size follows the median jaw, the place of the forehead stays fixed in time
    assert np.isfinite(placements[0].matrix).all()


def test_frames_without_a_face_lie_between_their_neighbours() -> None:
    face = track_of([((100 + 2 * index, 120), 0.0, 1.0) for index in range(20)])
    score, oval = face.score.copy(), face.oval.copy()
    score[8:12], oval[8:12] = 0, 0
    whole = place_crops(face, SOURCE, TARGET, "stabilised").matrix
    gap = place_crops(FaceTrack(oval, face.box, score), SOURCE, TARGET, "stabilised").matrix
    np.testing.assert_allclose(gap, whole, atol=0.05)


@pytest.mark.parametrize("crop", ["tracked", "stabilised"])
def test_clip_without_any_face_is_refused(crop) -> None:
    face = FaceTrack(np.zeros((5, 36, 2), np.float32), np.zeros((5, 4), np.float32), np.zeros(5, np.float32))
    with pytest.raises(UserError, match="no face") as caught:
        place_crops(face, SOURCE, TARGET, crop)
    assert caught.value.kind == "damaged-sample"


def gradient(height: int, width: int) -> np.ndarray:
    """An image uint8 [H, W, 3] whose red is the column and whose green is the row, half each."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns / 2, rows / 2, np.full_like(rows, 90)], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("scale", [0.4, 0.9, 2.2])
def test_pixels_of_a_crop_are_those_of_their_place(scale: float) -> None:
    face = track_of([((150, 115), 0.3, scale)])
    placement = place_crops(face, SOURCE, TARGET, "stabilised")
    crop = cut_crops(gradient(*SOURCE)[None], placement)[0]
    for row, column in ((10, 10), (31, 40), (55, 20)):
        x, y = placement.matrix[0] @ [column, row, 1]
        inside = 3 < x < SOURCE[1] - 4 and 3 < y < SOURCE[0] - 4
        if inside:
            np.testing.assert_allclose(crop[row, column, :2], [x / 2, y / 2], atol=1.5)


def test_crop_beyond_the_frame_repeats_its_edge() -> None:
    face = track_of([((8, 6), 0.0, 1.0)])
    placement = place_crops(face, SOURCE, TARGET, "stabilised")
    crop = cut_crops(gradient(*SOURCE)[None], placement)[0]
    np.testing.assert_array_equal(crop[0, 0], gradient(*SOURCE)[0, 0])


def test_pasting_back_an_unchanged_crop_gives_the_portrait() -> None:
    portrait = gradient(*SOURCE)
    face = track_of([((150, 115), 0.25, 1.0)])
    placement = place_crops(face, SOURCE, (128, 128), "stabilised")
    crop = cut_crops(portrait[None], placement)
    pasted = paste_back(portrait, np.repeat(crop, 3, axis=0), placement)
    assert pasted.shape == (3, *portrait.shape)
    assert np.abs(pasted.astype(int) - portrait).max() <= 2
    # a changed crop changes the face and nothing outside the crop
    dark = paste_back(portrait, np.zeros_like(crop), placement)[0]
    assert dark[115, 150].max() == 0
    np.testing.assert_array_equal(dark[:10], portrait[:10])


@given(st.floats(-0.5, 0.5), st.floats(0.6, 1.4))
@settings(max_examples=20, deadline=None)
def test_mouth_box_turns_with_the_face(roll: float, scale: float) -> None:
    upright = mouth_boxes(UPRIGHT[None])[0]
    turned = mouth_boxes(move(UPRIGHT, (150, 110), roll, scale)[None])[0]
    np.testing.assert_allclose(turned, move(upright, (150, 110), roll, scale), atol=0.5 * scale)
    # below the middle, above the chin, and symmetric
    assert 0 < upright[:, 1].min() < upright[:, 1].max() < 55
    assert upright[:, 0].min() == pytest.approx(-upright[:, 0].max(), abs=1e-3)


@given(
    st.lists(st.sampled_from(["face", "none", "point", "line", "nan", "far"]), min_size=1, max_size=9),
    st.sampled_from(["tracked", "stabilised"]),
)
@settings(max_examples=60, deadline=None)
def test_damaged_ovals_never_give_a_damaged_crop(kinds: list[str], crop) -> None:
    face = track_of([((160, 120), 0.1, 1.0)] * len(kinds))
    oval, score = face.oval.copy(), face.score.copy()
    for index, kind in enumerate(kinds):
        if kind == "none":
            oval[index], score[index] = 0, 0
        elif kind == "point":
            oval[index] = 0.5
        elif kind == "line":
            oval[index, :, 1] = 0.5
        elif kind == "nan":
            oval[index, 3] = np.nan
        elif kind == "far":
            oval[index] *= 1e9
    damaged = FaceTrack(oval, face.box, score)
    if "face" not in kinds:
        with pytest.raises(UserError, match="no face"):
            place_crops(damaged, SOURCE, TARGET, crop)
        return
    placement = place_crops(damaged, SOURCE, TARGET, crop)
    expected = place_crops(track_of([((160, 120), 0.1, 1.0)]), SOURCE, TARGET, crop).matrix
    np.testing.assert_allclose(placement.matrix, np.repeat(expected, len(kinds), axis=0), atol=1e-3)
