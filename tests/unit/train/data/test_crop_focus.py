"""Frames of another shape are cropped around the face, in training and for a user's own media."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_samples import face_mask, make_sample

from uniavgen.shards.sample import FaceTrack
from uniavgen.train.data.cached_latents import differing_fields
from uniavgen.train.data.config import DataConfig
from uniavgen.train.data.crops import crop_sample, face_focus, fit_frame, random_for


def marked(height: int, width: int, x: float, y: float) -> np.ndarray:
    """A black frame with a white square of 9 px at the point (x, y), in fractions."""
    frame = np.zeros((height, width, 3), np.uint8)
    row, column = round(y * height), round(x * width)
    frame[max(0, row - 4) : row + 5, max(0, column - 4) : column + 5] = 255
    return frame


def test_portrait_keeps_its_face_in_a_wide_window() -> None:
    frame = marked(320, 180, 0.5, 0.2)  # a face in the upper part of a portrait
    assert fit_frame(frame, 64, 128).max() == 0  # the middle rows have no face
    kept = fit_frame(frame, 64, 128, (0.5, 0.2))
    rows, columns = np.nonzero(kept[..., 0] > 128)
    assert abs(rows.mean() - 31.5) < 2
    assert abs(columns.mean() - 63.5) < 2


@given(
    height=st.integers(40, 200),
    width=st.integers(40, 200),
    x=st.floats(0.1, 0.9),
    y=st.floats(0.1, 0.9),
    target=st.sampled_from([(64, 64), (32, 96), (96, 32)]),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_crop_stays_inside_the_frame_and_keeps_the_focus(
    height: int, width: int, x: float, y: float, target: tuple[int, int]
) -> None:
    fitted = fit_frame(marked(height, width, x, y), *target, (x, y))
    assert fitted.shape == (*target, 3)
    assert fitted.max() > 60


def test_focus_is_the_median_box_of_frames_with_a_face() -> None:
    boxes = np.array([[0.1, 0.1, 0.3, 0.3], [0.2, 0.2, 0.4, 0.4], [0.9, 0.9, 1, 1], [0, 0, 0, 0]], np.float32)
    score = np.array([1, 1, 1, 0], np.float32)
    track = FaceTrack(np.zeros((4, 3, 2), np.float32), boxes, score)
    assert face_focus(track) == pytest.approx((0.3, 0.3))
    assert face_focus(replace(track, score=np.zeros(4, np.float32))) is None


def test_mask_follows_the_crop_around_the_face() -> None:
    sample = make_sample("a", 9, height=192, width=64)
    oval = np.tile(np.array([[0.25, 0.05], [0.75, 0.05], [0.75, 0.25], [0.25, 0.25]], np.float32), (9, 1, 1))
    face = FaceTrack(
        oval, np.tile(np.array([0.25, 0.05, 0.75, 0.25], np.float32), (9, 1)), np.ones(9, np.float32)
    )
    assert not face_mask(face, range(9), (192, 64), (64, 64)).any()
    kept = face_mask(face, range(9), (192, 64), (64, 64), face_focus(face))
    # rows 9.6 to 48 of the source are in the crop, which starts at row 0; the rasteriser fills the cells at
    # edges
    np.testing.assert_allclose(kept[0].sum() * 32 * 32, 32 * 38.4, rtol=0.3)
    crop = crop_sample(
        replace(sample, face=face),
        DataConfig(frames=5, height=64, width=64, reference_frames=3, crop="face"),
        random_for(0, 0, 0),
    )
    assert crop.face is not None
    assert crop.face[0].sum() > 1


def test_crop_is_a_field_of_cached_latents_that_old_caches_lack() -> None:
    assert differing_fields({"height": 64}, {"height": 64, "crop": "centre"}) == []
    assert differing_fields({"height": 64}, {"height": 64, "crop": "face"}) == ["crop (centre, here face)"]
    assert differing_fields({"crop": "face"}, {"crop": "centre"}) == ["crop (face, here centre)"]
